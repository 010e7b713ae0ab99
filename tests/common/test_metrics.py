"""Metrics against scikit-learn, by their invariants, and the interval by its coverage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from common.metrics import (
    auroc,
    average_precision,
    bootstrap_interval,
    evaluate,
    patient_redraws,
)

Cases = tuple[NDArray[np.int64], NDArray[np.float64]]


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    """Labels of both classes and scores on a coarse grid, so that ties are common."""
    num_cases = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=num_cases, max_size=num_cases))
    labels[0], labels[-1] = 0, 1
    scores = draw(st.lists(st.integers(-8, 8), min_size=num_cases, max_size=num_cases))
    order = draw(st.permutations(range(num_cases)))
    return np.array(labels)[order], np.array(scores, dtype=np.float64)[order] / 4


@given(cases())
def test_agrees_with_scikit_learn(case: Cases) -> None:
    labels, scores = case
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


@given(cases())
def test_monotone_transforms_change_nothing(case: Cases) -> None:
    labels, scores = case
    for transformed in (np.exp(scores), 3 * scores - 7, 1 / (1 + np.exp(-scores))):
        assert auroc(labels, transformed) == auroc(labels, scores)
        assert average_precision(labels, transformed) == average_precision(labels, scores)


@given(cases())
def test_swapped_labels_mirror_the_auroc(case: Cases) -> None:
    labels, scores = case
    assert auroc(1 - labels, scores) == pytest.approx(1 - auroc(labels, scores), abs=1e-12)
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores), abs=1e-12)


@given(cases())
def test_order_of_rows_does_not_matter(case: Cases) -> None:
    labels, scores = case
    assert auroc(labels[::-1], scores[::-1]) == auroc(labels, scores)
    assert average_precision(labels[::-1], scores[::-1]) == average_precision(labels, scores)


@pytest.mark.parametrize("metric", [auroc, average_precision])
@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1, 1], [0.1, math.nan, 0.3], "1 of 3 are NaN"),
        ([0, 1, 1], [0.1, math.inf, math.nan], "2 of 3 are NaN or infinite"),
        ([1, 1], [0.1, 0.2], "2 positive of 2; both classes"),
        ([0, 0], [0.1, 0.2], "0 positive of 2; both classes"),
        ([], [], "both classes"),
        ([0, 1], [0.1, 0.2, 0.3], "same length"),
        ([[0, 1]], [[0.1, 0.2]], "two vectors"),
        ([0, 2], [0.1, 0.2], "must be 0 or 1"),
    ],
)
def test_refuses_what_has_no_answer(
    metric: Callable[..., float], labels: list[int], scores: list[float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        metric(labels, scores)


def test_a_redraw_takes_patients_whole() -> None:
    patients = ["c", "a", "b", "a", "c", "a"]
    labels = [0, 1, 0, 1, 0, 1]
    rows_of = {"a": [1, 3, 5], "b": [2], "c": [0, 4]}
    for rows in patient_redraws(labels, patients, num_redraws=200, seed=3):
        counts = np.bincount(rows, minlength=6)
        per_patient = [set(counts[own].tolist()) for own in rows_of.values()]
        assert all(len(values) == 1 for values in per_patient)
        assert sum(values.pop() for values in per_patient) == 3
        assert 0 < np.asarray(labels)[rows].sum() < rows.size


def test_redraws_find_both_classes_where_that_is_rare() -> None:
    labels = np.array([1] + [0] * 50)
    redraws = list(patient_redraws(labels, range(51), num_redraws=300, seed=0))
    assert len(redraws) == 300
    assert all(labels[rows].any() for rows in redraws)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patients": ["a", "a", "a", "a"]}, "at least 2"),
        ({"patients": ["a", "b"]}, "2 for 4 images"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"num_redraws": 0}, "num_redraws=0"),
        ({"labels": [1, 1, 1, 1]}, "both classes"),
    ],
)
def test_interval_refuses_bad_arguments(changes: dict[str, object], words: str) -> None:
    arguments = {"labels": [0, 1, 0, 1], "scores": [0.1, 0.2, 0.3, 0.4], "patients": list("abcd")}
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(auroc, **{**arguments, "seed": 0, **changes})


def test_no_message_names_a_patient() -> None:
    with pytest.raises(ValueError, match="patients") as caught:
        bootstrap_interval(auroc, [0, 1], [0.1, 0.2], ["P_00123", "P_00123"], seed=0)
    assert "P_00123" not in str(caught.value)


def test_same_seed_same_interval_and_wider_confidence_is_wider() -> None:
    labels, scores, patients = _clustered_study(np.random.default_rng(5), num_patients=80)
    narrow = bootstrap_interval(auroc, labels, scores, patients, seed=1, confidence=0.5)
    wide = bootstrap_interval(auroc, labels, scores, patients, seed=1)
    assert wide == bootstrap_interval(auroc, labels, scores, patients, seed=1)
    assert wide != bootstrap_interval(auroc, labels, scores, patients, seed=2)
    assert wide[0] < narrow[0] < auroc(labels, scores) < narrow[1] < wide[1]


def _clustered_study(
    rng: np.random.Generator, *, num_patients: int, num_images: int = 4, shift: float = 1.0
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Binormal scores of variance 1 whose images agree within a patient (correlation 0.8).

    The images of a patient share its label, so the expected AUROC is Phi(shift / sqrt 2).
    """
    malignant = np.arange(num_patients) % 2 == 0
    own = rng.normal(scale=math.sqrt(0.8), size=(num_patients, 1))
    noise = rng.normal(scale=math.sqrt(0.2), size=(num_patients, num_images))
    scores = own + noise + shift * malignant[:, None]
    patients = np.repeat(np.arange(num_patients), num_images)
    return np.repeat(malignant, num_images), scores.ravel(), patients


def test_interval_covers_as_often_as_it_says_and_redrawn_images_would_not() -> None:
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(11)
    num_studies, by_patient, by_image = 300, 0, 0
    for study in range(num_studies):
        labels, scores, patients = _clustered_study(rng, num_patients=60)
        low, high = bootstrap_interval(auroc, labels, scores, patients, num_redraws=200, seed=study)
        by_patient += low <= truth <= high
        low, high = bootstrap_interval(
            auroc, labels, scores, range(labels.size), num_redraws=200, seed=study
        )
        by_image += low <= truth <= high
    # Three standard errors of 300 studies at 95 % are 3.8 points.
    assert 0.912 <= by_patient / num_studies <= 0.988
    assert by_image / num_studies < 0.80


def test_evaluation_is_what_the_result_file_holds() -> None:
    labels, scores, patients = _clustered_study(np.random.default_rng(2), num_patients=50)
    evaluation = evaluate(labels, scores, patients, seed=9)
    low, high = bootstrap_interval(auroc, labels, scores, patients, seed=9)
    assert evaluation.to_dict() == {
        "auroc": pytest.approx(roc_auc_score(labels, scores)),
        "auroc_ci95": [low, high],
        "auprc_malignant": pytest.approx(average_precision_score(labels, scores)),
        "auprc_benign": pytest.approx(average_precision_score(~labels, -scores)),
        "num_patients": 50,
        "num_images": 200,
    }
