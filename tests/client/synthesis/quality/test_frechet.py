from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesis.quality.frechet import frechet_distance, frechet_radiomics_distance
from common.errors import UsageError


def _with_moments(
    rng: np.random.Generator, mean: np.ndarray, root: np.ndarray, count: int
) -> np.ndarray:
    """Points whose sample mean and covariance are exactly ``mean`` and ``root root^T``."""
    points = rng.normal(size=(count, len(mean)))
    points -= points.mean(axis=0)
    triangle = np.linalg.cholesky(np.cov(points.T))
    return points @ np.linalg.inv(triangle).T @ root.T + mean


def test_gaussians_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    first, second = np.diag([1.0, 2.0, 3.0]), np.diag([2.0, 2.0, 0.5])
    shift = np.array([1.0, -2.0, 0.5])
    found = frechet_distance(
        _with_moments(rng, np.zeros(3), first, 50), _with_moments(rng, shift, second, 70)
    )
    # Commuting covariances: |shift|^2 plus the squared differences of the standard deviations.
    assert found == pytest.approx(1 + 4 + 0.25 + 1 + 0 + 6.25, rel=1e-10)


def test_gaussians_whose_covariances_do_not_commute() -> None:
    rng = np.random.default_rng(1)
    one, other = (rng.normal(size=(5, 5)) + 3 * np.eye(5) for _ in range(2))
    found = frechet_distance(
        _with_moments(rng, np.zeros(5), one, 40), _with_moments(rng, np.zeros(5), other, 60)
    )
    first, second = one @ one.T, other @ other.T
    cross = np.real(np.trace(scipy.linalg.sqrtm(first @ second)))
    assert found == pytest.approx(np.trace(first) + np.trace(second) - 2 * cross, rel=1e-8)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 60), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_few_images_of_many_features(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 2 + 1
    found = frechet_distance(first, second)
    covariances = [np.cov(rows.T).reshape(d, d) for rows in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariances[1] @ root)
    shift = first.mean(axis=0) - second.mean(axis=0)
    expected = shift @ shift + sum(np.trace(one) for one in covariances)
    # Roots of rounding errors: the reference is the less exact of the two.
    expected -= 2 * np.sqrt(np.maximum(inner, 0)).sum()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert frechet_distance(second, first) == pytest.approx(found, rel=1e-9, abs=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_one_distribution_seems_farther_apart_when_samples_are_small() -> None:
    rng = np.random.default_rng(0)
    small = [frechet_distance(*rng.normal(size=(2, 30, 16))) for _ in range(20)]
    large = [frechet_distance(*rng.normal(size=(2, 300, 16))) for _ in range(20)]
    assert np.mean(small) > 5 * np.mean(large) > 0


def test_units_of_a_feature_do_not_matter_to_radiomics() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 4)), rng.normal(size=(50, 4)) + 1
    units = np.array([1.0, 1e6, 1e-6, 3.0])
    found = frechet_radiomics_distance(real, fake)
    assert frechet_radiomics_distance(real * units + 7, fake * units + 7) == pytest.approx(
        found, rel=1e-6
    )
    flat = np.zeros((60, 1)) + 0.3
    with_flat = frechet_radiomics_distance(
        np.hstack([real, flat]), np.hstack([fake, flat[:50] + 1])
    )
    assert with_flat == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(
    "shapes", [((1, 3), (5, 3)), ((5, 3), (5, 2)), ((5,), (5,)), ((5, 0), (5, 0))]
)
def test_what_cannot_be_compared(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        frechet_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_features_that_are_not_finite() -> None:
    with pytest.raises(UsageError, match="NaN"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
    with pytest.raises(UsageError, match="varies"):
        frechet_radiomics_distance(np.ones((3, 2)), np.ones((3, 2)))
