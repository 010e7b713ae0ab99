"""Calibration errors against scikit-learn's curve, the formula written out, and simulation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve

from common.reliability import Binned, equal_mass_bins, equal_width_bins

Floats = NDArray[np.float64]


def binned(labels: NDArray[np.int64], probabilities: Floats, bins: NDArray[np.intp]) -> Binned:
    return Binned.of(np.arange(labels.size), labels == 1, probabilities, bins)


def written_out(labels: NDArray[np.int64], probabilities: Floats, edges: Floats) -> float:
    """Bins ``(low, high]``, the first with its lower end: weighted distance of the two means."""
    total = 0.0
    for place, (low, high) in enumerate(pairwise(edges)):
        rows = [
            row
            for row, value in enumerate(probabilities)
            if (low < value <= high) or (place == 0 and value <= low)
        ]
        if rows:
            share = sum(labels[row] for row in rows) / len(rows)
            mean = sum(probabilities[row] for row in rows) / len(rows)
            total += len(rows) / len(labels) * abs(share - mean)
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.sampled_from([0.01, 0.05, 0.25]))
def test_both_errors_are_the_formula_written_out(seed: int, size: int, grid: float) -> None:
    rng = np.random.default_rng(seed)
    probabilities = np.clip(np.round(rng.random(size) / grid) * grid, 0, 1)
    labels = rng.integers(2, size=size)
    once = np.ones((1, size), dtype=np.int64)
    by_width = binned(labels, probabilities, equal_width_bins(probabilities))
    edges = np.linspace(0, 1, 16)
    expected = written_out(labels, probabilities, edges)
    assert by_width.errors(once)[0] == pytest.approx(expected, abs=1e-12)
    by_mass = binned(labels, probabilities, equal_mass_bins(probabilities))
    inner = np.unique(np.quantile(probabilities, np.linspace(0, 1, 11)[1:-1]))
    expected = written_out(labels, probabilities, np.array([-np.inf, *inner, np.inf]))
    assert by_mass.errors(once)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("bins", "strategy", "num_bins"),
    [(equal_width_bins, "uniform", 15), (equal_mass_bins, "quantile", 10)],
)
def test_the_curve_is_scikit_learns(bins: object, strategy: str, num_bins: int) -> None:
    rng = np.random.default_rng(3)
    probabilities = rng.beta(0.7, 1.3, size=400)
    labels = (rng.random(400) < probabilities**2).astype(np.int64)
    one = binned(labels, probabilities, bins(probabilities))
    points = one.curve(one.shares(np.ones((1, 400), dtype=np.int64)))
    observed, predicted = calibration_curve(
        labels, probabilities, n_bins=num_bins, strategy=strategy
    )
    assert [point.predicted for point in points] == pytest.approx(predicted.tolist())
    assert [point.observed.value for point in points] == pytest.approx(observed.tolist())
    assert sum(point.num_images for point in points) == 400
    if strategy == "quantile":
        assert {point.num_images for point in points} == {40}


def test_an_image_drawn_thrice_counts_thrice() -> None:
    rng = np.random.default_rng(4)
    probabilities, labels = rng.random(30), rng.integers(2, size=30)
    bins = equal_width_bins(probabilities)
    counts = rng.integers(4, size=30)
    rows = np.repeat(np.arange(30), counts)
    (drawn,) = binned(labels, probabilities, bins).errors(counts[None])
    again = binned(labels[rows], probabilities[rows], bins[rows])
    assert drawn == pytest.approx(again.errors(np.ones((1, rows.size), dtype=np.int64))[0])


def test_a_calibrated_model_has_the_error_that_is_foretold() -> None:
    rng = np.random.default_rng(5)
    probabilities = rng.beta(2, 2, size=400)
    once = np.ones((1, 400), dtype=np.int64)
    bins = equal_mass_bins(probabilities)
    found = [
        binned((rng.random(400) < probabilities).astype(np.int64), probabilities, bins).errors(once)
        for _ in range(400)
    ]
    foretold = binned(np.zeros(400, dtype=np.int64), probabilities, bins).error_if_calibrated
    assert foretold is not None
    assert foretold > 0.04
    assert np.mean(found) == pytest.approx(foretold, rel=0.05)
    wrong = [
        binned(
            (rng.random(400) < 0.8 * probabilities).astype(np.int64), probabilities, bins
        ).errors(once)
        for _ in range(100)
    ]
    assert np.mean(wrong) > 1.5 * foretold


def test_without_images_there_is_no_error() -> None:
    nobody = binned(np.zeros(0, dtype=np.int64), np.zeros(0), equal_mass_bins([]))
    assert np.isnan(nobody.errors(np.ones((2, 5), dtype=np.int64))).all()
    assert nobody.error_if_calibrated is None
