"""Nearest neighbours in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from client.synthesis.quality.images import Features

_NUMBERS_AT_ONCE = 1 << 22  # distances in memory: 32 MiB


def distances(
    queries: Features, references: Features
) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    """Euclidean distances, a block of queries at a time.

    Both are first moved by the references' mean, so that a common offset does not swallow digits;
    what remains of the rounding lets equal points appear up to about 1e-7 of their norm apart.

    Args:
        queries: (n, d).
        references: (m, d).

    Yields:
        Which queries, and (block, m) their distances to every reference.
    """
    centre = references.mean(axis=0)
    right = references - centre
    right_norms = np.einsum("ij,ij->i", right, right)
    in_block = max(1, _NUMBERS_AT_ONCE // len(right))
    for start in range(0, len(queries), in_block):
        rows = slice(start, start + in_block)
        left = queries[rows] - centre
        squared = left @ right.T
        squared *= -2.0
        squared += np.einsum("ij,ij->i", left, left)[:, None]
        squared += right_norms
        yield rows, np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)


def radii(points: Features, k: int) -> npt.NDArray[np.float64]:
    """(n,) the distance of each point to its k-th nearest other point; 1 <= k < n."""
    found = np.empty(len(points))
    for rows, block in distances(points, points):
        found[rows] = np.partition(block, k, axis=1)[:, k]  # the point itself is nearest, at 0
    return found
