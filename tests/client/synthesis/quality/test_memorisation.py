from __future__ import annotations

import numpy as np
import pytest

from client.synthesis.quality.memorisation import LEVEL, Space, memorisation
from common.errors import UsageError

_N, _M = 120, 80


def _space(rng: np.random.Generator, *, copied: int = 0, learnt: float = 0.0) -> Space:
    train = rng.normal(0.6 - learnt, 0.1, size=_N)
    train[:copied] = rng.uniform(0, 0.1, size=copied)
    return Space(
        name="pixels",
        copy_below=0.1,
        train=train,
        held_out=rng.normal(0.6, 0.1, size=_M),
        synthetic_to_train=rng.random(500),
        held_out_to_train=rng.random(_M),
    )


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(0)
    found = [memorisation([_space(rng), _space(rng)]) for _ in range(1000)]
    # Bonferroni over dependent tests is cautious; 25 of 1,000 is six deviations above 1 %.
    assert sum(one.p < LEVEL for one in found) <= 25
    assert sum(one.p < 0.5 for one in found) > 100
    assert sum(one.suspected for one in found) <= 25


def test_each_probability_is_one() -> None:
    rng = np.random.default_rng(1)
    (spaces,) = zip(*[memorisation([_space(rng)]).spaces for _ in range(2000)], strict=True)
    for name in ("attack_p", "near_p"):
        values = np.array([getattr(one, name) for one in spaces])
        for level in (0.05, 0.2, 0.5):
            assert (values <= level).mean() < level + 4 * np.sqrt(level * (1 - level) / 2000)
        assert (values <= 0.5).mean() > 0.25
    near = np.mean([one.near_train for one in spaces])
    assert near == pytest.approx(spaces[0].near_expected, rel=0.15)
    assert np.mean([one.attack_auroc for one in spaces]) == pytest.approx(0.5, abs=0.01)
    shares = np.array([one.near_images > one.near_images_bound for one in spaces])
    assert 0.02 < shares.mean() < 0.08


@pytest.mark.parametrize("copied", [2, 15, 60])
def test_copies_are_found(copied: int) -> None:
    rng = np.random.default_rng(2)
    found = memorisation([_space(rng), _space(rng, copied=copied)])
    assert found.suspected
    assert found.copied == copied
    assert (found.p < LEVEL) == (copied > 2)


def test_a_little_of_everybody_is_found_without_a_copy() -> None:
    found = memorisation([_space(np.random.default_rng(3), learnt=0.08)])
    assert found.copied == 0
    assert found.suspected
    assert found.spaces[0].attack_auroc > 0.6


def test_patients_of_one_space_only() -> None:
    rng = np.random.default_rng(0)
    one = _space(rng)
    other = Space(
        name="features",
        copy_below=0.1,
        train=one.train[:5],
        held_out=one.held_out,
        synthetic_to_train=one.synthetic_to_train,
        held_out_to_train=one.held_out_to_train,
    )
    with pytest.raises(UsageError, match="same"):
        memorisation([one, other])
    with pytest.raises(UsageError, match="spaces"):
        memorisation([])
    with pytest.raises(UsageError, match="at least 2"):
        Space(
            name="pixels",
            copy_below=0.1,
            train=one.train[:1],
            held_out=one.held_out,
            synthetic_to_train=one.synthetic_to_train,
            held_out_to_train=one.held_out_to_train,
        )
    assert "0." not in repr(one).replace("copy_below=0.1", "")
