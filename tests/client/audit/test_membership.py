"""Scores of membership attacks: by their papers' formulas, and worth what theory says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client.audit.membership import (
    Answers,
    Floats,
    attacks,
    by_patient,
    lira,
    loss_threshold,
    rmia,
)
from common.metrics import auroc


def answers(losses: Any, references: Any, absent: Any = None) -> Answers:
    references = np.array(references, dtype=np.float64)
    absent = np.ones(references.shape, dtype=bool) if absent is None else np.array(absent)
    return Answers(losses=np.array(losses, dtype=np.float64), references=references, absent=absent)


def of_probabilities(model: Any, references: Any, absent: Any = None) -> Answers:
    return answers(-np.log(np.array(model)), -np.log(np.array(references)), absent)


def test_a_small_loss_is_a_large_score() -> None:
    found = loss_threshold(answers([0.1, 2.0], np.zeros((0, 2))))
    assert found.tolist() == [-0.1, -2.0]


def test_rmia_is_the_ratio_of_its_paper() -> None:
    # offline, a = 0.3: p(x) = ((1 + a) mean over references without x + (1 - a)) / 2
    found = rmia(of_probabilities([0.9], [[0.5], [0.7], [0.01]], [[True], [True], [False]]))
    assert np.exp(found) == pytest.approx([0.9 / (0.5 * (1.3 * 0.6 + 0.7))])


@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0]))
def test_comparing_with_other_peoples_images_changes_no_rank(seed: int, gamma: float) -> None:
    """The whole of RMIA: the share of images z with ratio(x) >= gamma ratio(z)."""
    rng = np.random.default_rng(seed)
    ratio = np.exp(rmia(of_probabilities(rng.uniform(0.01, 1, 40), rng.uniform(0.01, 1, (3, 40)))))
    targets, others = ratio[:30], ratio[30:]
    whole = (targets[:, None] >= gamma * others).mean(1)
    assert (np.diff(whole[np.argsort(targets)]) >= 0).all()


def test_lira_counts_standard_deviations_of_the_logit() -> None:
    references = 1 / (1 + np.exp(-np.array([[0.0, 4.0], [2.0, 6.0]])))
    model = 1 / (1 + np.exp(-np.array([3.0, 5.0])))
    # centres 1 and 5, every deviation 1
    assert lira(of_probabilities(model, references)) == pytest.approx([2.0, 0.0])


def test_lira_knows_each_images_own_spread_where_references_are_many() -> None:
    logits = np.concatenate([np.tile([[1.0, 10.0]], (20, 1)), np.tile([[-1.0, -10.0]], (20, 1))])
    references = 1 / (1 + np.exp(-logits))
    model = 1 / (1 + np.exp(-np.array([2.0, 2.0])))
    assert lira(of_probabilities(model, references)) == pytest.approx([2.0, 0.2], rel=1e-3)


def test_only_references_without_the_patient_count() -> None:
    seen = answers([1.0], [[1.0], [50.0]], [[True], [False]])
    unseen = answers([1.0], [[1.0]])
    for attack in (rmia, lira):
        assert attack(seen) == pytest.approx(attack(unseen))


def test_extreme_losses_stay_finite() -> None:
    found = attacks(answers([0.0, 1e-30, 800.0], [[0.0, 1e-30, 800.0]] * 2))
    assert set(found) == {"loss", "RMIA", "LiRA"}
    assert all(np.isfinite(one).all() for one in found.values())


def test_without_references_the_loss_is_left() -> None:
    assert set(attacks(answers([1.0, 2.0], np.zeros((0, 2))))) == {"loss"}


def drawn(rng: np.random.Generator, shift: float) -> tuple[Answers, Any]:
    """Images as hard as they are, with references; members' logits are ``shift`` higher."""
    num, references = 2000, 8
    hardness = rng.normal(scale=3.0, size=num)
    member = np.arange(num) < num // 2
    logits = hardness + rng.normal(size=num) + shift * member
    others = hardness + rng.normal(size=(references, num))
    return answers(np.log1p(np.exp(-logits)), np.log1p(np.exp(-others))), member


def test_lira_is_worth_what_theory_says() -> None:
    """Shift d over noise of variance 1, and of 1 / 8 in the centre: AUC = Phi(d / sqrt(2 9/8))."""
    one, member = drawn(np.random.default_rng(0), shift=1.5)
    expected = stats.norm.cdf(1.5 / np.sqrt(2 * 9 / 8))
    assert auroc(member, lira(one)) == pytest.approx(expected, abs=0.03)
    # the loss does not know how hard an image is: noise of variance 10 instead
    plain = stats.norm.cdf(1.5 / np.sqrt(2 * 10))
    assert auroc(member, loss_threshold(one)) == pytest.approx(plain, abs=0.03)


def test_nothing_is_found_where_nothing_is() -> None:
    one, member = drawn(np.random.default_rng(1), shift=0.0)
    for name, scores in attacks(one).items():
        assert abs(auroc(member, scores) - 0.5) < 0.04, name


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), max_size=30))
def test_a_patients_score_is_the_mean_of_the_images(rows: list[tuple[int, float]]) -> None:
    rows = [*((patient, 0.0) for patient in range(5)), *rows]
    patients = np.array([patient for patient, _ in rows])
    scores: Floats = np.array([score for _, score in rows])
    found = by_patient(scores, patients, 5)
    expected = [scores[patients == patient].mean() for patient in range(5)]
    assert found == pytest.approx(expected)


def test_a_patient_without_images_is_refused() -> None:
    for patients in ([0, 2], [0, 1, 3]):
        with pytest.raises(ValueError, match="each of the 3"):
            by_patient(np.zeros(len(patients)), np.array(patients), 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"losses": [np.nan, 1.0]}, "not finite"),
        ({"references": [[np.inf, 1.0]]}, "not finite"),
        ({"absent": [[True, False]]}, "trained without it"),
        ({"references": [[1.0]]}, "shape"),
    ],
)
def test_unusable_answers_are_refused(changes: dict[str, Any], complaint: str) -> None:
    sound = {"losses": [1.0, 1.0], "references": [[1.0, 1.0]], "absent": [[True, True]]}
    with pytest.raises(ValueError, match=complaint):
        answers(**(sound | changes))
