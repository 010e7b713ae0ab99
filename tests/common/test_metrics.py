"""Metrics against scikit-learn and by their invariants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from common.metrics import auroc, average_precision

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
