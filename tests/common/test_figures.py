"""Every figure against scikit-learn, in redraws: each image weighs as often as it was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)

from common.estimate import Support, Unsaid
from common.figures import Figure, Measure

Ints, Floats = NDArray[np.int64], NDArray[np.float64]
THRESHOLD = 0.5


def on_answers(metric: Callable[..., float], **options: object) -> Callable[..., float]:
    return lambda truth, scores: metric(truth, scores >= THRESHOLD, **options)


ORACLES: dict[Figure, Callable[..., float]] = {
    Figure.auroc: roc_auc_score,
    Figure.auprc: average_precision_score,
    Figure.auprc_negative: lambda truth, scores: average_precision_score(1 - truth, -scores),
    Figure.brier: brier_score_loss,
    Figure.calibration_gap: lambda truth, scores: float(scores.mean() - truth.mean()),
    Figure.accuracy: on_answers(accuracy_score),
    Figure.balanced_accuracy: on_answers(balanced_accuracy_score),
    Figure.sensitivity: on_answers(recall_score),
    Figure.specificity: on_answers(recall_score, pos_label=0),
    Figure.f1: on_answers(f1_score),
}


@st.composite
def redrawn_cases(draw: st.DrawFn) -> tuple[Ints, Floats, Ints]:
    """Labels with unknown ones, probabilities with many ties, and how often each was drawn."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(4, 40))
    labels = rng.integers(-1, 2, size=size)
    labels[:2] = [0, 1]
    counts = rng.integers(4, size=size)
    counts[:2] += 1
    return labels, rng.integers(0, 9, size=size) / 8, counts


@settings(max_examples=60, deadline=None)
@given(case=redrawn_cases())
def test_figures_of_a_redraw_are_scikit_learns_of_the_repeated_rows(
    case: tuple[Ints, Floats, Ints],
) -> None:
    labels, scores, counts = case
    rows = np.repeat(np.arange(labels.size), counts)
    rows = rows[labels[rows] >= 0]
    samples = np.stack([np.ones_like(counts), counts])
    found = Measure.of(labels, scores, THRESHOLD)(samples, list(ORACLES))
    assert found.shape == (2, len(ORACLES))
    for value, (figure, oracle) in zip(found[1], ORACLES.items(), strict=True):
        assert value == pytest.approx(oracle(labels[rows], scores[rows]), abs=1e-12), figure


@given(case=redrawn_cases())
def test_chosen_rows_are_measured_as_if_there_were_no_others(
    case: tuple[Ints, Floats, Ints],
) -> None:
    labels, scores, counts = case
    rows = np.arange(labels.size) % 3 != 2
    figures = list(Figure)
    part = Measure.of(labels, scores, THRESHOLD, rows)(counts[None], figures)
    alone = Measure.of(labels[rows], scores[rows], THRESHOLD)(counts[rows][None], figures)
    np.testing.assert_allclose(part, alone, atol=1e-12)


def test_what_cannot_be_measured_is_nan_and_nothing_else_is() -> None:
    counts = np.ones((1, 4), dtype=np.int64)

    def missing(labels: list[int], scores: list[float], threshold: float | None) -> set[Figure]:
        (found,) = Measure.of(labels, scores, threshold)(counts, list(Figure))
        return {one for one, value in zip(Figure, found, strict=True) if math.isnan(value)}

    ranked = {Figure.auroc, Figure.auprc, Figure.auprc_negative}
    calibration = {Figure.brier, Figure.ece, Figure.ece_equal_width, Figure.calibration_gap}
    at_threshold = set(Figure) - ranked - calibration
    scores = [0.1, 0.6, 0.4, 0.9]
    assert missing([0, 1, 0, 1], scores, 0.5) == set()
    assert missing([0, 1, 0, 1], scores, None) == at_threshold
    assert missing([0, 1, 0, 1], [-3.0, 0.2, 0.1, 5.0], 0.5) == calibration
    one_sided = ranked | {Figure.balanced_accuracy}
    assert missing([0, 0, 0, -1], scores, 0.5) == one_sided | {Figure.sensitivity}
    assert missing([1, 1, 1, -1], scores, 0.5) == one_sided | {Figure.specificity}
    assert missing([-1] * 4, scores, 0.5) == set(Figure)


def test_which_figures_need_which_patients() -> None:
    def needy(**numbers: int) -> dict[Unsaid, set[str]]:
        support = Support(**{"num_images": 99, "num_patients": 40} | numbers)
        found: dict[Unsaid, set[str]] = {}
        for figure in Figure:
            why = figure.too_few(support)
            if why is not None:
                found.setdefault(why, set()).add(figure.value)
        return found

    both = {"auroc", "auprc", "auprc_negative", "balanced_accuracy", "f1"}
    assert needy(num_with=10, num_without=10) == {}
    with_label = needy(num_with=9, num_without=30)
    assert with_label == {Unsaid.too_few_with_label: both | {"sensitivity"}}
    without = needy(num_with=30, num_without=9)
    assert without == {Unsaid.too_few_without_label: both | {"specificity"}}
    few = needy(num_patients=19, num_with=12, num_without=12)
    assert few == {Unsaid.too_few_patients: {figure.value for figure in Figure}}
