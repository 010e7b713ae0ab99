"""From clipped gradients to whole numbers whose norm is bounded, and back from sums of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.privacy.discrete import max_norm_squared
from common.secure_aggregation.primitives import Vector

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

_ATTEMPTS = 64


def rounded(gradient: Floats, *, clip: int, rng: np.random.Generator) -> Whole:
    """``gradient``, of norm at most 1, times ``clip`` in whole numbers.

    Guarantees: whatever the gradient and the draws, the sum of squares of the result is at most
    `max_norm_squared`. Where the gradient keeps its bound the rounding is random, and drawn again
    until the norm is right (conditional stochastic rounding; Kairouz, Liu, Steinke 2021,
    arXiv 2102.06387), which leaves it all but unbiased. One that is not finite counts as zero.

    Args:
        gradient: (num_weights,) in units of the clipping norm.
        clip: whole numbers in one unit.
        rng: what rounding is drawn from; nothing has to be hidden in it.
    """
    limit = max_norm_squared(clip, gradient.size)
    norm = float(np.linalg.norm(gradient))
    if not np.isfinite(norm):
        return np.zeros(gradient.size, dtype=np.int64)
    scaled = gradient * (clip / max(norm, 1.0))
    low = np.floor(scaled)
    chances = scaled - low
    for _ in range(_ATTEMPTS):
        drawn = (low + (rng.random(gradient.size) < chances)).astype(np.int64)
        if _squares(drawn) <= limit:
            return drawn
    return np.trunc(scaled * (1 - 1e-12)).astype(np.int64)  # no entry grows, so neither the norm


def _squares(values: Whole) -> int:
    return int(np.dot(values, values))


def into_ring(values: Whole, bits: int) -> Vector:
    """Whole numbers modulo 2 to ``bits``."""
    return values.astype(np.uint32) if bits == 32 else values.astype(np.uint64)


def out_of_ring(values: Vector) -> Whole:
    """The whole numbers nearest to zero that `into_ring` makes ``values`` of."""
    signed = np.int32 if values.dtype.itemsize == 4 else np.int64
    return values.view(signed).astype(np.int64)
