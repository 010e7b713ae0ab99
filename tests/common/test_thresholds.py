"""Youden's threshold against scikit-learn's ROC curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from common.thresholds import youden_threshold

Cases = tuple[NDArray[np.int64], NDArray[np.float64]]


@st.composite
def cases(draw: st.DrawFn) -> Cases:
    num_cases = draw(st.integers(2, 30))
    labels = draw(st.lists(st.integers(-1, 1), min_size=num_cases, max_size=num_cases))
    labels[:2] = [0, 1]
    scores = draw(st.lists(st.integers(-4, 4), min_size=num_cases, max_size=num_cases))
    return np.array(labels), np.array(scores) / 4


def index(labels: NDArray[np.int64], said: NDArray[np.bool_]) -> float:
    return float(said[labels == 1].mean() - said[labels == 0].mean())


@given(cases())
def test_no_threshold_has_a_larger_index_and_no_lower_one_as_large(case: Cases) -> None:
    labels, scores = case
    known = labels >= 0
    found = youden_threshold(labels, scores)
    assert found is not None
    false_alarms, hits, thresholds = roc_curve(
        labels[known], scores[known], drop_intermediate=False
    )
    indices = hits - false_alarms
    best = indices[1:].max()  # the first says yes to nobody, and no score is so high
    assert index(labels, scores >= found) == pytest.approx(best, abs=1e-12)
    assert found == thresholds[1:][indices[1:] > best - 1e-12].min()


def test_the_score_itself_means_yes() -> None:
    assert youden_threshold([0, 1], [0.2, 0.7]) == 0.7


@pytest.mark.parametrize("labels", [[0, 0, -1], [1, 1, -1], [-1, -1, -1], []])
def test_without_both_classes_there_is_none(labels: list[int]) -> None:
    assert youden_threshold(labels, [0.5] * len(labels)) is None
