"""What discrete noise costs: sums of integer vectors with discrete Gaussian noise on each entry.

The mechanism: each patient's clipped gradient is multiplied by ``clip`` / C, rounded to whole
numbers at random until its norm is within `max_norm_squared`, and summed exactly; each of several
sites adds independent discrete Gaussian noise of the same deviation. Derivation, with proofs and
sources: docs/secure-aggregation.md.
"""

from __future__ import annotations

import math

# Deviation of the discrete Gaussian that turns a continuous one into whole numbers.
BASE_STD = 3
LEAST_SHARE_STD = 16
MOST_SHARE_STD = 1 << 24


def max_norm_squared(clip: int, num_weights: int) -> int:
    """Square of the norm that no rounded vector passes; a whole number, held exactly.

    A vector of norm at most ``clip``, rounded at random, keeps it with a chance of at least
    1 - exp(-1/2), so few attempts are needed (Kairouz, Liu, Steinke 2021,
    arXiv 2102.06387, conditional randomised rounding).

    >>> max_norm_squared(65536, 1538)
    4295033236
    """
    root = math.sqrt(num_weights)
    by_chance = clip * clip + num_weights / 4 + clip + root / 2
    always = (clip + root) ** 2
    return math.floor(min(by_chance, always))


def noise_multiplier(*, clip: int, num_weights: int, share_std: int, num_shares: int) -> float:
    """Deviation over sensitivity of a continuous Gaussian mechanism that costs no less.

    Guarantees: whoever sees the discrete sum learns at most `distortion` more than whoever sees
    the same sum with continuous Gaussian noise of this multiplier.

    >>> noise_multiplier(clip=65536, num_weights=1538, share_std=65536, num_shares=1)
    0.999992322614338
    """
    variance = num_shares * share_std**2 - BASE_STD**2
    # rounded down: the square root and the quotient may each have gone half a bit up
    return math.sqrt(variance / max_norm_squared(clip, num_weights)) * (1 - 1e-15)


def log_distortion(num_weights: int, num_shares: int) -> float:
    """Natural logarithm of how far the discrete mechanism is from post-processing a Gaussian one.

    A bound on the logarithm of the ratio of their probabilities, whatever the share's deviation
    from `LEAST_SHARE_STD` on. Even for 2^28 weights and 100 shares it is below exp(-150), far
    below what floating point, and every accountant's margin, resolve; it is therefore not added.
    """
    base = _log_ripple(BASE_STD)
    shares = _log_ripple(LEAST_SHARE_STD / math.sqrt(2))
    largest = max(base, shares)
    both = math.exp(base - largest) + (num_shares - 1) * math.exp(shares - largest)
    return math.log(8 * num_weights) + largest + math.log(both)


def _log_ripple(std: float) -> float:
    """Logarithm of 2 sum_k exp(-2 (pi std k)^2), twice over.

    So much do sums of a Gaussian over whole numbers depend on where its centre lies.
    """
    return math.log(4) - 2 * (math.pi * std) ** 2
