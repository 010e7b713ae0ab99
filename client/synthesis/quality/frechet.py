"""Frechet distance: how far two sets of images lie apart as wholes."""

from __future__ import annotations

import numpy as np

from client.synthesis.quality.images import Features
from common.errors import UsageError


def frechet_distance(first: Features, second: Features) -> float:
    """Squared 2-Wasserstein distance of the Gaussians that fit two sets of features.

    ``|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))``, with the unbiased covariances S (Heusel
    et al. 2017, arXiv 1706.08500). The last trace is the sum of the singular values of
    ``X1 X2^T / sqrt((n1 - 1)(n2 - 1))`` for centred features X, which the triangles R of their QR
    decompositions share. So nothing here squares a matrix and takes its root again: with fewer
    images than features, where covariances are singular and `scipy.linalg.sqrtm` answers with
    complex or wrong numbers, the result is as exact as elsewhere.

    *Biased*: two samples of one distribution have a positive distance that falls about as 1/n
    (Chong and Forsyth 2020, arXiv 1911.07023), and at n near d it may exceed what is to be
    measured. Compare figures only between sets of equal sizes.

    Args:
        first: (n, d), n at least 2.
        second: (m, d), m at least 2.

    Raises:
        UsageError: Fewer than two images, or different features.

    >>> points = np.array([[0.0], [2.0]])
    >>> frechet_distance(points, points + 3)
    9.0
    """
    check_features(first, second)
    shift = first.mean(axis=0) - second.mean(axis=0)
    roots = [_triangle(features) for features in (first, second)]
    spreads = sum(float((root**2).sum()) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(0.0, float(shift @ shift + spreads - 2 * shared))


def frechet_radiomics_distance(reference: Features, other: Features) -> float:
    """Frechet distance of radiomics features after z-scoring both sets by ``reference``.

    Each feature then counts in units of the reference's spread (Osuala et al. 2024,
    arXiv 2407.12669, there "v0"); their features are those of pyradiomics, ours are in
    `client.synthesis.quality.radiomics`, so only the order of figures can be compared. A feature
    that is constant within the reference has no such unit and is left out.

    Args:
        reference: (n, d) real images.
        other: (m, d).

    Raises:
        UsageError: Fewer than two images, different features, or no feature varies.
    """
    check_features(reference, other)
    centre, spread = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(centre))
    if not varies.any():
        raise UsageError("reference images: no radiomics feature varies among them")
    scaled = [(rows[:, varies] - centre[varies]) / spread[varies] for rows in (reference, other)]
    return frechet_distance(*scaled)


def check_features(first: Features, second: Features) -> None:
    """Refuses sets that cannot be compared.

    Raises:
        UsageError: Not two tables of the same features with at least two finite rows each.
    """
    shapes = f"features {first.shape} and {second.shape}"
    if first.ndim != 2 or second.ndim != 2 or first.shape[1:] != second.shape[1:]:
        raise UsageError(f"{shapes}: must be (n, d) and (m, d)")
    if min(len(first), len(second)) < 2 or first.shape[1] < 1:
        raise UsageError(f"{shapes}: at least two images of each set are needed")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UsageError(f"{shapes}: some are NaN or infinite")


def _triangle(features: Features) -> Features:
    """R with ``R^T R`` the covariance of the rows; min(n, d) rows."""
    centred = features - features.mean(axis=0)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(features) - 1)
