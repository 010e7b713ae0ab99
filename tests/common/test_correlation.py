"""Pearson's r against SciPy, and which pairs are used."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from common.correlation import over_labels, over_models, pearson


@given(st.integers(0, 2**32 - 1), st.integers(4, 30), st.floats(-2, 2))
def test_agrees_with_scipy(seed: int, num_pairs: int, slope: float) -> None:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=num_pairs)
    second = slope * first + rng.normal(size=num_pairs)
    expected = scipy.stats.pearsonr(first, second)
    found = pearson(first.tolist(), second.tolist())
    assert found.r == pytest.approx(expected.statistic, abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    interval = expected.confidence_interval()
    assert found.ci95 == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "num_pairs"),
    [([], [], 0), ([1.0, 2.0], [2.0, 1.0], 2), ([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], 5)],
)
def test_nothing_is_said_of_too_few_or_constant_figures(
    first: list[float], second: list[float], num_pairs: int
) -> None:
    found = pearson(first, second)
    assert (found.r, found.p_value, found.ci95) == (None, None, None)
    assert found.num_pairs == num_pairs


def test_points_on_a_line_are_certain() -> None:
    found = pearson([1.0, 2.0, 3.0, 4.0], [-2.0, -4.0, -6.0, -8.0])
    assert found.r == pytest.approx(-1.0)
    assert found.p_value == pytest.approx(0.0, abs=1e-9)


def test_an_infinite_epsilon_is_left_out_and_counted() -> None:
    found = over_models([0.29, 1.06, 4.71, 8.0, math.inf], [0.05, 0.04, 0.03, 0.01, 9.9])
    expected = scipy.stats.pearsonr([0.29, 1.06, 4.71, 8.0], [0.05, 0.04, 0.03, 0.01])
    assert found.r == pytest.approx(expected.statistic)
    assert (found.num_pairs, found.left_out) == (4, 1)


def test_labels_are_matched_by_name_and_a_missing_auroc_leaves_its_label_out() -> None:
    aurocs = {"a": 0.9, "b": 0.8, "c": 0.85, "d": 0.7, "e": None}
    private = {"e": 0.5, "d": 0.68, "c": 0.79, "b": 0.75, "a": 0.8}
    samples = {"b": 30, "a": 10, "c": 20, "e": 1, "d": 90}
    found = over_labels(aurocs, private, samples)
    plain, under, sizes = [0.9, 0.8, 0.85, 0.7], [0.8, 0.75, 0.79, 0.68], [10, 30, 20, 90]
    drops = np.subtract(plain, under)
    pairs = {
        "drop_and_auroc": (drops, plain),
        "drop_and_samples": (drops, sizes),
        "auroc_and_samples": (plain, sizes),
    }
    for name, pair in pairs.items():
        one = getattr(found, name)
        assert one.r == pytest.approx(scipy.stats.pearsonr(*pair).statistic)
        assert (one.num_pairs, one.left_out) == (4, 1)
    assert found.private_auroc_and_samples.num_pairs == 5
    with pytest.raises(ValueError, match="same ones"):
        over_labels(aurocs, private, {"a": 1})
