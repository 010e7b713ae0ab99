"""From guesses that were right to a lower bound of epsilon, each with what it assumes.

All bounds hold with the ``confidence`` asked for: a sound mechanism is above its claim in at most
one of 1 / (1 - confidence) audits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import optimize, special, stats

from common.privacy.accountants import PldAccountant
from common.privacy.events import GaussianRelease, PoissonGaussianSteps

TOLERANCE = 1e-4  # of epsilon, by one run
_MOST_EPSILON = 1e3
_LEAST_NOISE, _MOST_NOISE = 0.2, 1e4
_NOISE_TOLERANCE = 1e-3  # of its logarithm


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Bounds of an attack's rates that hold together.

    Attributes:
        true_positive: at least so many of those who are there are found.
        false_positive: at most so many of those who are not are found, too.
    """

    true_positive: float
    false_positive: float

    @classmethod
    def of(cls, found: int, there: int, mistaken: int, absent: int, *, confidence: float) -> Rates:
        """Clopper-Pearson, each rate with half of the error that is allowed.

        Assumes that who is found does not depend on who else is.

        >>> Rates.of(50, 50, 0, 50, confidence=0.95)
        Rates(true_positive=0.928..., false_positive=0.071...)
        """
        each = (1 + confidence) / 2
        low = stats.binomtest(found, there, alternative="greater").proportion_ci(each).low
        high = stats.binomtest(mistaken, absent, alternative="less").proportion_ci(each).high
        return cls(true_positive=float(low), false_positive=float(high))

    @property
    def mu(self) -> float:
        """Distance of two normal distributions that would be told apart so well, at least 0."""
        if self.true_positive <= 0 or self.false_positive >= 1:
            return 0.0
        quantile = special.ndtri
        return max(0.0, float(quantile(self.true_positive) - quantile(self.false_positive)))


def from_rates(rates: Rates, delta: float) -> float:
    """Smallest epsilon that allows an attack with these ``rates`` at ``delta``, and no more.

    Assumes nothing of the mechanism (Kairouz, Oh, Viswanath 2015, arXiv 1311.0776).

    >>> round(from_rates(Rates(true_positive=0.5, false_positive=0.05), 1e-5), 3)
    2.303
    """
    hits, mistakes = rates.true_positive, rates.false_positive
    return max(_log_ratio(hits - delta, mistakes), _log_ratio(1 - mistakes - delta, 1 - hits), 0.0)


def _log_ratio(high: float, low: float) -> float:
    if high <= 0:
        return 0.0
    return math.log(high / low) if low > 0 else math.inf


def gaussian(rates: Rates, delta: float) -> float:
    """Epsilon at ``delta`` of the Gaussian mechanism that an attack with these ``rates`` shows.

    The bound of Nasr et al. 2023 (arXiv 2302.07956). Assumes that the mechanism's trade-off of
    false positives and misses is that of two normal distributions: true where every patient is in
    every step, and a limit only where patients are drawn.
    """
    if not rates.mu:
        return 0.0
    release = GaussianRelease(noise_multiplier=1 / rates.mu)
    return PldAccountant().epsilon([release], delta)


def sampled_gaussian(rates: Rates, delta: float, *, sampling_rate: float, steps: int) -> float:
    """Epsilon at ``delta`` of sampled Gaussian steps that an attack with these ``rates`` shows.

    Of all noise multipliers with which such an attack is possible it takes the largest. Assumes
    that the mechanism is steps of Poisson-sampled Gaussian noise with this sampling rate and number
    of steps, and that only the noise is unknown (as Nasr et al. 2023 do for DP-SGD). Where no noise
    at all explains the rates, sampling hides nobody, and the answer is `gaussian`'s.
    """
    if rates.true_positive <= rates.false_positive:
        return 0.0
    bound = PldAccountant().true_positive_rate_bound

    def event(log_noise: float) -> PoissonGaussianSteps:
        return PoissonGaussianSteps(
            sampling_rate=sampling_rate, noise_multiplier=math.exp(log_noise), steps=steps
        )

    def too_much(log_noise: float) -> float:
        """By how much the attack is better than any on steps with this noise; it rises with it."""
        steps_taken = [event(log_noise)]
        found = rates.true_positive - bound(steps_taken, rates.false_positive)
        let_go = 1 - rates.false_positive - bound(steps_taken, 1 - rates.true_positive)
        return max(found, let_go)

    least, most = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    if too_much(least) > 0:
        return gaussian(rates, delta)
    if too_much(most) <= 0:
        return PldAccountant().epsilon([event(most)], delta)
    turn = cast("float", optimize.brentq(too_much, least, most, xtol=_NOISE_TOLERANCE))
    return PldAccountant().epsilon([event(turn + _NOISE_TOLERANCE)], delta)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guesses:
    """What an attacker said of canaries that were there by independent fair coins.

    Attributes:
        num_canaries: m.
        made: r, of how many the attacker said something.
        right: v, how often that was true.
    """

    num_canaries: int
    made: int
    right: int


def one_run(guesses: Guesses, delta: float, *, confidence: float) -> float:
    """Largest epsilon that so many right guesses rule out at ``delta``.

    Assumes nothing of the mechanism, not even that canaries do not disturb each other (Steinke,
    Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv 2305.08846, theorem
    5.2). Canaries of several independent runs count as those of one.

    >>> round(one_run(Guesses(num_canaries=100, made=100, right=100), 1e-5, confidence=0.95), 1)
    3.5
    >>> one_run(Guesses(num_canaries=100, made=100, right=50), 1e-5, confidence=0.95)
    0.0
    """

    def ruled_out(epsilon: float) -> bool:
        return rules_out(guesses, epsilon, delta, confidence=confidence)

    return _turn(ruled_out, 0.0, _MOST_EPSILON, TOLERANCE)[0] if ruled_out(0.0) else 0.0


def rules_out(guesses: Guesses, epsilon: float, delta: float, *, confidence: float) -> bool:
    """Whether so many right guesses are too many for ``epsilon``, as `one_run` sees it."""
    return guesses.made > 0 and _chance(guesses, epsilon, delta) < 1 - confidence


def _chance(guesses: Guesses, epsilon: float, delta: float) -> float:
    """At most so probable are that many right guesses under (epsilon, delta)."""
    made, right = guesses.made, guesses.right
    rate = float(special.expit(epsilon))
    tail = float(stats.binom.sf(right - 1, made, rate))
    fewer = stats.binom.pmf(right - np.arange(1, right + 1), made, rate)
    steepest = float(np.max(np.cumsum(fewer) / np.arange(1, right + 1), initial=0.0))
    return min(1.0, tail + 2 * guesses.num_canaries * delta * steepest)


def _turn(
    holds: Callable[[float], bool], low: float, high: float, tolerance: float
) -> tuple[float, float]:
    """Two numbers ``tolerance`` apart or less: ``holds`` is true at the first, not the second."""
    while high - low > tolerance:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, high
