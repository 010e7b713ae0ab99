"""Discrete Gaussian noise, drawn exactly: with whole numbers only, no floating point.

Canonne, Kamath, Steinke 2020 ("The discrete Gaussian for differential privacy", algorithms 1 to
3), done for many numbers at a time. How long it takes depends on the noise drawn, not on what it
is added to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.privacy.discrete import LEAST_SHARE_STD, MOST_SHARE_STD
from common.secure_aggregation.randomness import RandomWords, Words

Whole = NDArray[np.int64]
Chosen = NDArray[np.bool_]

_AT_ONCE = 1 << 16  # candidates of a chunk stay in a processor's cache
# Beyond 128 deviations squares would overflow; a number so large is kept with a chance below
# exp(-8000), so that not keeping it changes no probability by more than that.
_FARTHEST = 128


def discrete_gaussian(std: int, count: int, words: RandomWords) -> Whole:
    """(count,) independent whole numbers x with probability proportional to exp(-x^2 / 2 std^2).

    Raises:
        ValueError: if ``std`` is out of bounds.
    """
    if not LEAST_SHARE_STD <= std <= MOST_SHARE_STD:
        raise ValueError(f"std={std}: must be from {LEAST_SHARE_STD} to {MOST_SHARE_STD}")
    found = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        drawn = _candidates(std, min(_AT_ONCE, 2 * (count - filled) + 64), words)
        drawn = drawn[: count - filled]
        found[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    return found


def _candidates(std: int, count: int, words: RandomWords) -> Whole:
    """Those of ``count`` discrete Laplace numbers of scale ``std`` that make a Gaussian one."""
    laplace = _laplace(std, count, words)
    size = np.abs(laplace)
    near = size < _FARTHEST * std
    laplace, size = laplace[near], size[near]
    exponents = ((size - std) ** 2).astype(np.uint64)  # over 2 std^2
    unit = np.uint64(2 * std * std)
    kept = _exp_of_fraction(exponents % unit, int(unit), words)
    return laplace[kept & _exp_of_whole(exponents // unit, words)]


def _laplace(scale: int, count: int, words: RandomWords) -> Whole:
    """About half of ``count`` numbers x with probability proportional to exp(-|x| / scale)."""
    low = words.below(scale, count)
    low = low[_exp_of_fraction(low, scale, words)]
    high = _geometric(len(low), words)
    size = low.astype(np.int64) + scale * high
    negative = words.below(2, len(size)) == 1
    once = ~(negative & (size == 0))  # zero has one sign
    return np.where(negative, -size, size)[once]


def _geometric(count: int, words: RandomWords) -> Whole:
    """How often a coin that shows heads with chance exp(-1) does so before it shows tails."""
    found = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_exp_of_fraction(np.ones(len(going), dtype=np.uint64), 1, words)]
        found[going] += 1
    return found


def _exp_of_whole(exponents: Words, words: RandomWords) -> Chosen:
    """True with chance exp(-exponent)."""
    alive = np.ones(len(exponents), dtype=np.bool_)
    left = exponents.copy()
    while len(going := np.flatnonzero(alive & (left > 0))):
        alive[going] = _exp_of_fraction(np.ones(len(going), dtype=np.uint64), 1, words)
        left[going] -= np.uint64(1)
    return alive


def _exp_of_fraction(numerators: Words, denominator: int, words: RandomWords) -> Chosen:
    """True with chance exp(-numerator / denominator), for fractions from 0 to 1.

    Heads of chance x / 1, x / 2, x / 3, ... until one fails; the number of the one that fails is
    odd with chance exp(-x).
    """
    odd = np.ones(len(numerators), dtype=np.bool_)
    going = np.arange(len(numerators))
    turn = 1
    while len(going):
        heads = words.below(denominator * turn, len(going)) < numerators[going]
        going = going[heads]
        odd[going] = not odd[going[0]] if len(going) else True
        turn += 1
    return odd
