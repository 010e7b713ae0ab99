"""From events to epsilon: accountants interpret what was released, they never decide it.

Adjacency is zero-out: one unit's data replaced by nothing. It has the same epsilon as add/remove
for these mechanisms and makes the cohort's size public. Every figure is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from dp_accounting import gaussian_mechanism, rdp  # pyright: ignore[reportMissingTypeStubs]

from common.privacy import loss_distribution, renyi
from common.privacy.events import (
    Event,
    GaussianRelease,
    GroupPoissonGaussianSteps,
    NonPrivateRelease,
    PoissonGaussianSteps,
    SummedDiscreteGaussianSteps,
    merge,
    split,
)

RUNNING_INTERVAL = 1e-3
CERTIFICATE_INTERVAL = 1e-4
ADJACENCY = "zero-out"
NAMES = ("pld", "rdp")

_MAX_DISTINCT = 256
# Epsilon would be above 1e11: arithmetic would overflow long before anyone could use it.
_LEAST_NOISE = 1e-6
_Parts = frozenset[tuple[Event, int]]


class Accountant(Protocol):
    """Anything that bounds epsilon for a list of events; a fake of it is one method long."""

    @property
    def name(self) -> str:
        """The word shown beside every epsilon."""
        ...

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Upper bound of epsilon at ``delta``; 0.0 for no events, infinity where none is finite."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """Events in normal form: what accountants need, whatever the order and grouping they came in.

    Attributes:
        infinite: Something left without noise.
        mu_squared: Everything that used the whole cohort, as one Gaussian mechanism of sensitivity
            over noise ``mu`` (Dong, Roth, Su 2022: exact).
        parts: Each other mechanism (done once) with its count.
    """

    infinite: bool
    mu_squared: float
    parts: _Parts

    @property
    def empty(self) -> bool:
        """Whether nothing was released."""
        return not (self.infinite or self.mu_squared or self.parts)


def normalise(events: Iterable[Event]) -> Composition:
    """The composition of ``events``; noise in whole numbers stands as its Gaussian bound."""
    infinite, squares, parts = False, list[float](), dict[Event, int]()
    for event in merge(map(_bound, events)):
        one, count = split(event)
        match one:
            case NonPrivateRelease():
                infinite = True
            case (
                GaussianRelease(noise_multiplier=noise)
                | PoissonGaussianSteps(noise_multiplier=noise)
                | GroupPoissonGaussianSteps(noise_multiplier=noise)
            ) if noise < _LEAST_NOISE:
                infinite = True
            case GaussianRelease() | PoissonGaussianSteps(sampling_rate=1.0):
                squares.append(count / one.noise_multiplier**2)
            case GroupPoissonGaussianSteps(sampling_rate=1.0):
                squares.append(count * (one.group_size / one.noise_multiplier) ** 2)
            case PoissonGaussianSteps() | GroupPoissonGaussianSteps():
                parts[one] = parts.get(one, 0) + count
            case SummedDiscreteGaussianSteps():
                raise AssertionError("its Gaussian bound stands in its place")
    return Composition(
        infinite=infinite, mu_squared=math.fsum(squares), parts=frozenset(parts.items())
    )


def _bound(event: Event) -> Event:
    return event.gaussian() if isinstance(event, SummedDiscreteGaussianSteps) else event


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r}: must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PldAccountant:
    """Privacy loss distributions (Koskela et al. 2020) on a grid at most ``interval`` wide.

    Tight to about ``interval``, always upwards. Losses too large for any grid (epsilon in the
    thousands) fall back to the RDP bound; a delta below about 1e-15 per step cannot be resolved
    and reads as infinity.
    """

    interval: float = RUNNING_INTERVAL

    @property
    def name(self) -> str:
        """The word shown beside every epsilon."""
        return "pld"

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Upper bound of epsilon at ``delta``."""
        _check_delta(delta)
        composition = normalise(events)
        if composition.empty:
            return 0.0
        if composition.infinite:
            return math.inf
        return _pld_epsilon(composition.mu_squared, composition.parts, delta, self.interval)

    def delta(self, events: Sequence[Event], epsilon: float) -> float:
        """Upper bound of delta at ``epsilon``; 1.0 where the grid cannot hold the losses."""
        composition = normalise(events)
        if composition.empty:
            return 0.0
        both = _pld(composition, self.interval)
        return max(one.delta(epsilon) for one in both) if both else 1.0

    def true_positive_rate_bound(self, events: Sequence[Event], fpr: float) -> float:
        """Largest true-positive rate of any membership attack whose false-positive rate is ``fpr``.

        >>> step = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=2.0, steps=100)
        >>> round(PldAccountant().true_positive_rate_bound([step], 0.01), 3)
        0.038
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"fpr={fpr!r}: must lie between 0 and 1")
        composition = normalise(events)
        if composition.empty:
            return fpr
        return _pld_true_positive_rate(composition, fpr, self.interval)


@lru_cache(maxsize=256)
def _pld_true_positive_rate(composition: Composition, fpr: float, interval: float) -> float:
    both = _pld(composition, interval)
    return min(1.0, max(one.true_positive_rate(fpr) for one in both)) if both else 1.0


@lru_cache(maxsize=4)
def _pld(
    composition: Composition, interval: float
) -> tuple[loss_distribution.LossDistribution, ...]:
    if composition.infinite:
        return ()
    parts = list(_coarsen(composition.parts))
    if composition.mu_squared:
        noise = 1.0 / math.sqrt(composition.mu_squared)
        parts.append((GaussianRelease(noise_multiplier=noise), 1))
    try:
        width = loss_distribution.refined(parts, interval)
        return (
            loss_distribution.compose(parts, "remove", width),
            loss_distribution.compose(parts, "add", width),
        )
    except loss_distribution.GridTooLargeError:
        return ()


@lru_cache(maxsize=4096)
def _pld_epsilon(mu_squared: float, parts: _Parts, delta: float, interval: float) -> float:
    if not parts:
        return _gaussian_epsilon(mu_squared, delta)
    composition = Composition(infinite=False, mu_squared=mu_squared, parts=parts)
    both = _pld(composition, interval)
    if not both:
        return _rdp_epsilon(composition, delta)
    return max(one.epsilon(delta) for one in both)


def _gaussian_epsilon(mu_squared: float, delta: float) -> float:
    # Exact (Balle and Wang 2018); the root finder's tolerance is added on top.
    noise = 1.0 / math.sqrt(mu_squared)
    epsilon = float(gaussian_mechanism.get_epsilon_gaussian(noise, delta))
    return epsilon * (1 + 1e-12) + 1e-11 if epsilon > 0 else 0.0


def _coarsen(parts: Iterable[tuple[Event, int]]) -> tuple[tuple[Event, int], ...]:
    """Fewer distinct mechanisms, each at least as costly: noise rounded down, rate rounded up."""
    coarse = dict(parts)
    for digits in (3, 2, 1):
        if len(coarse) <= _MAX_DISTINCT:
            break
        merged: dict[Event, int] = {}
        for one, count in coarse.items():
            rounded = _rounded_up_in_cost(one, digits)
            merged[rounded] = merged.get(rounded, 0) + count
        coarse = merged
    # A fixed order keeps the last bits equal, however the events arrived.
    return tuple(sorted(coarse.items(), key=repr))


def _rounded_up_in_cost(event: Event, digits: int) -> Event:
    match event:
        case PoissonGaussianSteps() | GroupPoissonGaussianSteps():
            rate = _round(event.sampling_rate, digits, up=True)
            noise = _round(event.noise_multiplier, digits, up=False)
            if isinstance(event, PoissonGaussianSteps):
                return PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=1)
            return GroupPoissonGaussianSteps(
                sampling_rate=rate, noise_multiplier=noise, steps=1, group_size=event.group_size
            )
        case GaussianRelease() | NonPrivateRelease() | SummedDiscreteGaussianSteps():
            return event


def _round(value: float, digits: int, *, up: bool) -> float:
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    rounded = (math.ceil(value * scale) if up else math.floor(value * scale)) / scale
    return min(1.0, max(value, rounded)) if up else min(value, rounded)


@dataclass(frozen=True, kw_only=True, slots=True)
class RdpAccountant:
    """Renyi differential privacy (Mironov 2017), at dp_accounting's orders, with its conversion.

    Looser than PLD by some ten percent; the one to use when stopping or parameters adapt to data
    (Feldman and Zrnic 2021), and to compare with papers.
    """

    @property
    def name(self) -> str:
        """The word shown beside every epsilon."""
        return "rdp"

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Upper bound of epsilon at ``delta``."""
        _check_delta(delta)
        composition = normalise(events)
        if composition.empty:
            return 0.0
        if composition.infinite:
            return math.inf
        return _rdp_epsilon(composition, delta)


def _rdp_epsilon(composition: Composition, delta: float) -> float:
    total = composition.mu_squared / 2 * renyi.ORDERS
    for one, count in _coarsen(composition.parts):
        match one:
            case PoissonGaussianSteps() | GroupPoissonGaussianSteps():
                total = total + count * renyi.of_step(one)
            case GaussianRelease() | NonPrivateRelease() | SummedDiscreteGaussianSteps():
                raise AssertionError("normal form holds sampled mechanisms only")
    if np.all(np.isinf(total)):
        return math.inf
    epsilon, _ = rdp.compute_epsilon(list(renyi.ORDERS), list(total), delta)
    return max(0.0, float(epsilon))


def build(name: str) -> Accountant:
    """The accountant called ``name``.

    Raises:
        ValueError: No accountant has that name, or it is refused because it is optimistic.
    """
    match name:
        case "pld":
            return PldAccountant()
        case "rdp":
            return RdpAccountant()
        case "gdp":
            raise ValueError(
                "accountant='gdp': refused, the central-limit approximation underestimates epsilon "
                "(0.132 where the truth is 0.701); use one of " + ", ".join(NAMES)
            )
        case _:
            raise ValueError(f"accountant={name!r}: must be one of {', '.join(NAMES)}")


def certificate() -> PldAccountant:
    """PLD on the finer grid, for a figure that will be quoted; about ten times the cost."""
    return PldAccountant(interval=CERTIFICATE_INTERVAL)
