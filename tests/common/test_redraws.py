"""Redraws of patients: whole patients, exact AUROCs, and intervals by how often they are right."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from common.redraws import Ranking, auroc_intervals, redrawn, row_counts

Cases = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]


@st.composite
def redrawn_cases(draw: st.DrawFn) -> Cases:
    """Labels with unknown ones, scores with many ties, and how often each was drawn."""
    num_cases = draw(st.integers(2, 30))

    def numbers(low: int, high: int) -> NDArray[np.int64]:
        values = draw(st.lists(st.integers(low, high), min_size=num_cases, max_size=num_cases))
        return np.array(values)

    labels, counts = numbers(-1, 1), numbers(0, 3)
    labels[0], labels[1] = 0, 1
    return labels, numbers(-4, 4) / 4, counts


@given(redrawn_cases())
def test_areas_of_a_redraw_are_scikit_learns_of_the_repeated_rows(case: Cases) -> None:
    labels, scores, counts = case
    runs = Ranking.of(labels, scores).runs(counts[None])
    (found,) = runs.aurocs()
    (auprc,), (negative,) = (runs.average_precisions(of_negatives=one) for one in (False, True))
    rows = np.repeat(np.arange(labels.size), counts)
    rows = rows[labels[rows] >= 0]
    truth, said = labels[rows], scores[rows]
    if len(set(truth)) < 2:
        assert all(math.isnan(one) for one in (found, auprc, negative))
    else:
        assert found == pytest.approx(roc_auc_score(truth, said), abs=1e-12)
        assert auprc == pytest.approx(average_precision_score(truth, said), abs=1e-12)
        assert negative == pytest.approx(average_precision_score(1 - truth, -said), abs=1e-12)


@given(redrawn_cases())
def test_samples_do_not_mix(case: Cases) -> None:
    labels, scores, counts = case
    ranking = Ranking.of(labels, scores)
    together = ranking.aurocs(np.stack([counts, np.ones_like(counts), 2 * counts]))
    alone = [ranking.aurocs(one[None])[0] for one in (counts, np.ones_like(counts), counts)]
    np.testing.assert_array_equal(together, alone)


def test_a_redraw_takes_patients_whole() -> None:
    patients = ["c", "a", "b", "a", "c", "a"]
    rows_of = {"a": [1, 3, 5], "b": [2], "c": [0, 4]}
    block = next(row_counts(patients, seed=3))
    assert len(block) == 100
    for counts in block:
        per_patient = [set(counts[own].tolist()) for own in rows_of.values()]
        assert all(len(values) == 1 for values in per_patient)
        assert sum(values.pop() for values in per_patient) == 3


def test_patients_are_drawn_evenly_and_anew() -> None:
    blocks = np.concatenate(list(islice(row_counts(range(20), seed=1), 40)))
    assert len(np.unique(blocks, axis=0)) > 0.99 * len(blocks)
    # 80,000 draws of 20 patients: the standard error of a patient's 4,000 is 62.
    assert abs(blocks.sum(axis=0) - 4000).max() < 4 * 62
    # Poisson in the limit: a patient is absent with probability (19/20)^20 = 0.358.
    assert 0.35 < (blocks == 0).mean() < 0.37


def test_statistics_share_their_redraws_whoever_asks() -> None:
    patients = np.arange(40) // 2

    def drawn(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return counts.astype(np.float64)

    def of_the_first(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return counts[:, 0].astype(np.float64)

    both = redrawn([drawn, of_the_first], patients, num_redraws=250, seed=3)
    alone = redrawn([of_the_first], patients, num_redraws=250, seed=3)
    assert both[0].shape == (250, 40)
    assert alone[0].shape == (250,)
    np.testing.assert_array_equal(both[0][:, 0], alone[0])
    np.testing.assert_array_equal(both[1], alone[0])
    blocks = np.concatenate(list(islice(row_counts(patients, seed=3), 3)))
    np.testing.assert_array_equal(both[0], blocks[:250])
    with pytest.raises(ValueError, match="num_redraws=0"):
        redrawn([drawn], patients, num_redraws=0, seed=3)


def test_many_images_are_counted_in_small_blocks() -> None:
    block = next(row_counts(np.arange(60_000) // 4, seed=0))
    assert block.nbytes <= 16 << 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patients": ["a", "a", "a", "a"]}, "at least 2"),
        ({"confidence": 1.0}, r"confidence=1\.0"),
        ({"num_redraws": 0}, "num_redraws=0"),
        ({"rankings": []}, "both classes"),
        ({"rankings": [Ranking.of([1, 1, 1, -1], [0.1, 0.2, 0.3, 0.4])]}, "both classes"),
        ({"rankings": [Ranking.of([-1] * 4, [0.1, 0.2, 0.3, 0.4])]}, "both classes"),
    ],
)
def test_intervals_refuse_bad_arguments(changes: dict[str, object], words: str) -> None:
    rankings = [Ranking.of([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])]
    arguments = {"rankings": rankings, "patients": list("abcd"), "seed": 0} | changes
    with pytest.raises(ValueError, match=words):
        auroc_intervals(**arguments)


def test_no_message_names_a_patient() -> None:
    with pytest.raises(ValueError, match="patients") as caught:
        auroc_intervals([Ranking.of([0, 1], [0.1, 0.2])], ["P_00123", "P_00123"], seed=0)
    assert "P_00123" not in str(caught.value)


def _clustered_study(
    rng: np.random.Generator, *, num_patients: int, num_images: int = 4, shift: float = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Binormal scores of variance 1 whose images agree within a patient (correlation 0.8).

    The images of a patient share its label, so the expected AUROC is Phi(shift / sqrt 2).
    """
    ill = np.arange(num_patients) % 2
    own = rng.normal(scale=math.sqrt(0.8), size=(num_patients, 1))
    noise = rng.normal(scale=math.sqrt(0.2), size=(num_patients, num_images))
    scores = own + noise + shift * ill[:, None]
    patients = np.repeat(np.arange(num_patients), num_images)
    return np.repeat(ill, num_images), scores.ravel(), patients


def test_same_seed_same_interval_and_wider_confidence_is_wider() -> None:
    labels, scores, patients = _clustered_study(np.random.default_rng(5), num_patients=80)
    ranking = [Ranking.of(labels, scores)]
    narrow = auroc_intervals(ranking, patients, seed=1, confidence=0.5).macro
    wide = auroc_intervals(ranking, patients, seed=1).macro
    assert wide == auroc_intervals(ranking, patients, seed=1).macro
    assert wide != auroc_intervals(ranking, patients, seed=2).macro
    assert wide[0] < narrow[0] < roc_auc_score(labels, scores) < narrow[1] < wide[1]


def test_a_labels_interval_does_not_depend_on_the_other_labels() -> None:
    """Also where a rare one makes more redraws necessary."""
    rng = np.random.default_rng(8)
    labels, scores, patients = _clustered_study(rng, num_patients=40)
    rare = (patients == 3).astype(np.int64)
    both = [Ranking.of(labels, scores), Ranking.of(rare, rng.normal(size=rare.size))]
    alone = [auroc_intervals([one], patients, seed=4) for one in both]
    together = auroc_intervals(both, patients, seed=4)
    assert together.labels == tuple(one.macro for one in alone)
    assert together.labels == tuple(one.labels[0] for one in alone)


def test_labels_share_their_redraws() -> None:
    """Then the mean of a label and its opposite is always one half."""
    labels, scores, patients = _clustered_study(np.random.default_rng(5), num_patients=30)
    opposite = [Ranking.of(labels, scores), Ranking.of(labels, -scores)]
    low, high = auroc_intervals(opposite, patients, seed=0).macro
    assert low == pytest.approx(0.5, abs=1e-12)
    assert high == pytest.approx(0.5, abs=1e-12)


def test_interval_covers_as_often_as_it_says_and_redrawn_images_would_not() -> None:
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(11)
    num_studies, by_patient, by_image = 300, 0, 0
    for study in range(num_studies):
        labels, scores, patients = _clustered_study(rng, num_patients=60)
        ranking = [Ranking.of(labels, scores)]
        low, high = auroc_intervals(ranking, patients, num_redraws=200, seed=study).macro
        by_patient += low <= truth <= high
        low, high = auroc_intervals(ranking, range(labels.size), num_redraws=200, seed=study).macro
        by_image += low <= truth <= high
    # Three standard errors of 300 studies at 95 % are 3.8 points.
    assert 0.912 <= by_patient / num_studies <= 0.988
    assert by_image / num_studies < 0.80


def test_mean_over_labels_with_a_rare_one_covers_as_often_as_it_says() -> None:
    """A label with three patients is missing from one redraw in twenty, and found more easily."""
    rng = np.random.default_rng(12)
    shifts = (2.0, 1.0, 0.5)
    truth = np.mean([0.5 * (1 + math.erf(shift / 2)) for shift in shifts])
    num_studies, covered = 200, 0
    for study in range(num_studies):
        rankings = []
        for num_positive, shift in zip((3, 30, 40), shifts, strict=True):
            labels = rng.permutation(np.arange(80) < num_positive).astype(np.int64)
            rankings.append(Ranking.of(labels, rng.normal(size=80) + shift * labels))
        low, high = auroc_intervals(rankings, range(80), num_redraws=200, seed=study).macro
        covered += low <= truth <= high
    # Three standard errors of 200 studies at 95 % are 4.6 points.
    assert 0.904 <= covered / num_studies <= 0.996


@pytest.mark.parametrize(("num_positive", "lowest", "highest"), [(2, 0.5, 0.8), (20, 0.89, 0.99)])
def test_few_patients_make_intervals_too_narrow(
    num_positive: int, lowest: float, highest: float
) -> None:
    """Why pages mark intervals of labels with fewer than ten patients on one side."""
    rng = np.random.default_rng(13)
    labels = (np.arange(50 + num_positive) < num_positive).astype(np.int64)
    truth = 0.5 * (1 + math.erf(0.5))
    num_studies, covered = 200, 0
    for study in range(num_studies):
        ranking = [Ranking.of(labels, rng.normal(size=labels.size) + labels)]
        low, high = auroc_intervals(ranking, range(labels.size), num_redraws=200, seed=study).macro
        covered += low <= truth <= high
    assert lowest <= covered / num_studies <= highest
