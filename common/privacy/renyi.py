"""Renyi divergences of single steps, at dp_accounting's orders.

Integer orders have a closed form; fractional ones are integrated (Mironov, Talwar, Zhang 2019,
"Renyi differential privacy of the sampled Gaussian mechanism"), because dp_accounting's series
drops the sign of the binomial coefficients there and reads up to twice too high. The integrands
are analytic, for which the trapezoidal rule converges faster than any power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from dp_accounting import rdp  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from common.privacy.events import GroupPoissonGaussianSteps, PoissonGaussianSteps

Floats = NDArray[np.float64]

ORDERS: Floats = np.asarray(rdp.RdpAccountant().orders, dtype=np.float64)
_INTEGER = np.equal(np.mod(ORDERS, 1.0), 0.0)
_MAX_POINTS = 200_000
_MAX_MIXTURE_ORDER = 64.0


_LOG_FACTORIALS: Floats = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 1025)))])


def _closed(rate: float, noise: float, order: int) -> float:
    k = np.arange(order + 1)
    log_terms = (
        _LOG_FACTORIALS[order]
        - _LOG_FACTORIALS[k]
        - _LOG_FACTORIALS[order - k]
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + k * (k - 1) / (2 * noise**2)
    )
    return _log_sum(log_terms, 1.0) / (order - 1)


@lru_cache(maxsize=4096)
def of_step(event: PoissonGaussianSteps | GroupPoissonGaussianSteps) -> Floats:
    """Divergence of one step at each of `ORDERS`; infinite where it was not computed.

    A sampling rate of 1 is not sampled and does not belong here.
    """
    divergences = np.full(len(ORDERS), np.inf)
    match event:
        case PoissonGaussianSteps():
            rate, noise = event.sampling_rate, event.noise_multiplier
            divergences[_INTEGER] = [_closed(rate, noise, int(n)) for n in ORDERS[_INTEGER]]
            fractional = ~_INTEGER
            divergences[fractional] = _integrate(
                noise, (0.0, 1.0), (1.0 - rate, rate), ORDERS[fractional]
            )[0]
        case GroupPoissonGaussianSteps():
            low = ORDERS <= _MAX_MIXTURE_ORDER
            drawn, chances = event.sensitivities()
            both = _integrate(event.noise_multiplier, drawn, chances, ORDERS[low])
            divergences[low] = np.maximum(*both)
    divergences = np.where(np.isnan(divergences), np.inf, divergences)
    # Round-off of the logarithm, divided by order - 1, can cross zero at tiny rates, where
    # dp_accounting's conversion would read an epsilon of zero.
    return np.maximum(divergences, 0.0) + 4e-14 / (ORDERS - 1)


def _integrate(
    noise: float, sensitivities: Sequence[float], chances: Sequence[float], orders: Floats
) -> tuple[Floats, Floats]:
    """Divergences of mixture from Gaussian (the unit is removed) and back (added)."""
    # The nearest complex singularity of log(mixture / Gaussian) lies noise^2 pi / sensitivity off.
    largest = max(sensitivities)
    step = min(noise / 50, noise * noise / (4 * largest))
    low, high = -20 * noise, float(orders.max()) * largest + 20 * noise
    if (high - low) / step > _MAX_POINTS:
        infinite = np.full(len(orders), np.inf)
        return infinite, infinite
    x = np.arange(low, high, step)
    log_gaussian = -0.5 * (x / noise) ** 2 - math.log(noise * math.sqrt(2 * math.pi))
    log_ratio = np.full(len(x), -np.inf)
    for size, chance in zip(sensitivities, chances, strict=True):
        if chance > 0:
            term = math.log(chance) + size * (x - 0.5 * size) / noise**2
            log_ratio = np.logaddexp(log_ratio, term)
    removed, added = np.empty(len(orders)), np.empty(len(orders))
    for i, order in enumerate(orders):
        removed[i] = _log_sum(log_gaussian + order * log_ratio, step) / (order - 1)
        added[i] = _log_sum(log_gaussian - (order - 1) * log_ratio, step) / (order - 1)
    return removed, added


def _log_sum(exponents: Floats, step: float) -> float:
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).sum()) * step)
