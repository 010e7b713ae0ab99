from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.synthesis.quality.answer import Answer, answer, detectable, event
from client.synthesis.quality.memorisation import Space
from common.config import Unit
from common.errors import UsageError
from common.privacy.events import GaussianRelease, patient_level

_SCORES = st.lists(st.floats(0, 1), min_size=3, max_size=12)


def _space(train: list[float], held_out: list[float], name: str = "pixels") -> Space:
    return Space(
        name=name,
        copy_below=0.2,
        train=np.array(train),
        held_out=np.array(held_out),
        synthetic_to_train=np.zeros(4),
        held_out_to_train=np.zeros(len(held_out)),
    )


def _silence(count: int) -> np.ndarray:
    return np.zeros(count)


def _counts(spaces: list[Space]) -> np.ndarray:
    found = answer(spaces, noise_multiplier=1.0, noise=_silence)
    return np.array([found.near_train, found.near_held_out])


@given(_SCORES, _SCORES, st.data())
def test_one_patient_replaced_by_nothing_moves_the_counts_by_at_most_one(
    train: list[float], held_out: list[float], data: st.DataObject
) -> None:
    spaces = [_space(train, held_out), _space(train[::-1], held_out[::-1], "features")]
    before = _counts(spaces)
    place = data.draw(st.integers(0, len(train) - 1))
    absent = []
    for space in spaces:
        scores = space.train.copy()
        scores[place] = np.inf
        absent.append(replace(space, train=scores))
    assert np.linalg.norm(before - _counts(absent)) <= 1
    assert before[0] == sum(a < 0.2 or b < 0.2 for a, b in zip(train, train[::-1], strict=True))


def test_the_noise_is_what_the_event_says() -> None:
    rng = np.random.default_rng(0)
    space = _space([0.1] * 30 + [0.9] * 70, [0.9] * 60)
    found = [answer([space], noise_multiplier=4.0, noise=rng.standard_normal) for _ in range(2000)]
    train = np.array([one.near_train for one in found])
    held_out = np.array([one.near_held_out for one in found])
    for values, expected in ((train, 30), (held_out, 0)):
        assert values.mean() == pytest.approx(expected, abs=4 * 4 / np.sqrt(2000))
        assert values.std() == pytest.approx(4.0, rel=0.1)
    assert abs(np.corrcoef(train, held_out)[0, 1]) < 0.1
    assert event(4.0) == GaussianRelease(noise_multiplier=4.0, count=1)
    assert patient_level(event(4.0), 1) == event(4.0)
    assert Unit.patient.value == "patient"


def _rate(share_train: float, share_held_out: float, noise_multiplier: float) -> float:
    """How often 578 and 212 patients with these shares of near ones are suspected."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        one = Answer(
            near_train=rng.binomial(578, share_train) + noise_multiplier * rng.normal(),
            near_held_out=rng.binomial(212, share_held_out) + noise_multiplier * rng.normal(),
            num_train=578,
            num_held_out=212,
            noise_multiplier=noise_multiplier,
        )
        found += one.suspected
    return found / 2000


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_false_alarms(share: float) -> None:
    assert _rate(share, share, 5.0) < 0.02


def test_what_is_promised_to_be_found_is_found() -> None:
    share = detectable(5.0, num_train=578, num_held_out=212)
    assert 0.87 < _rate(share, 0.0, 5.0) < 0.93
    assert _rate(share / 3, 0.0, 5.0) < 0.5
    assert 0.1 < share < 0.15
    assert detectable(20.0, num_train=578, num_held_out=212) > 2 * share
    assert detectable(100.0, num_train=578, num_held_out=50) == float("inf")


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_no_answer_without_noise(noise_multiplier: float) -> None:
    space = _space([0.1, 0.2], [0.1, 0.2])
    with pytest.raises(UsageError, match="noise_multiplier"):
        answer([space], noise_multiplier=noise_multiplier, noise=_silence)


def test_spaces_of_different_patients() -> None:
    with pytest.raises(UsageError, match="same"):
        answer([_space([0.1, 0.2], [0.1, 0.2]), _space([0.1, 0.2, 0.3], [0.1, 0.2])],
               noise_multiplier=1.0, noise=_silence)  # fmt: skip


def test_what_leaves_holds_nothing_exact() -> None:
    space = _space([0.123456, 0.9, 0.8], [0.1, 0.7])
    found = answer([space], noise_multiplier=3.0, noise=np.random.default_rng(0).standard_normal)
    assert set(found.to_dict()) == {
        "near_train", "near_held_out", "num_train", "num_held_out", "noise_multiplier", "excess",
        "standard_error", "suspected",
    }  # fmt: skip
    assert found.near_train != round(found.near_train)
