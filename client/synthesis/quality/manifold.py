"""Precision and recall: are synthetic images like real ones, and do they cover them?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.synthesis.quality.frechet import check_features
from client.synthesis.quality.images import Features
from client.synthesis.quality.neighbours import distances, radii
from common.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionRecall:
    """Derived from patients.

    Attributes:
        precision: The share of synthetic images that lie where real ones do.
        recall: The share of real images that lie where synthetic ones do.
    """

    precision: float
    recall: float


def precision_recall(real: Features, synthetic: Features, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991).

    A set's manifold is the union of balls around its points, each reaching to the point's k-th
    nearest neighbour in the set. Both figures depend on the sizes of the sets: compare them only
    between sets of equal sizes. One outlier makes a large ball, which many images may fall into.

    Memory: 32 MiB besides the features, whatever their number.

    Args:
        real: (n, d).
        synthetic: (m, d).
        k: From 1 to the size of the smaller set less one.

    Raises:
        UsageError: The sets cannot be compared, or ``k`` is out of bounds.

    >>> square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> precision_recall(square, square, k=1)
    PrecisionRecall(precision=1.0, recall=1.0)
    >>> precision_recall(square, square + 10, k=1)
    PrecisionRecall(precision=0.0, recall=0.0)
    """
    check_features(real, synthetic)
    most = min(len(real), len(synthetic)) - 1
    if not 1 <= k <= most:
        raise UsageError(f"k={k}: must be 1 to {most}, the size of the smaller set less one")
    in_real = np.zeros(len(synthetic), dtype=np.bool_)
    in_synthetic = np.zeros(len(real), dtype=np.bool_)
    real_radii, synthetic_radii = _padded(radii(real, k)), _padded(radii(synthetic, k))
    for rows, block in distances(synthetic, real):
        in_real[rows] = (block <= real_radii).any(axis=1)
        in_synthetic |= (block <= synthetic_radii[rows, None]).any(axis=0)
    return PrecisionRecall(precision=float(in_real.mean()), recall=float(in_synthetic.mean()))


def _padded(reach: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A ball of radius 0 (k equal images) still holds its centre, which rounding may move."""
    return reach + 1e-6 * reach.max(initial=0.0)
