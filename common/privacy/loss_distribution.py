"""Privacy loss distributions on a grid, composed in one Fourier transform.

dp_accounting gives the exact hockey-stick divergence of one mechanism; here it becomes a
distribution on the grid that dominates the mechanism (connect the dots: Doroshenko, Ghazi, Kamath,
Kumar, Manurangsi 2022) and many of them are composed at once, so that a ledger that grows round by
round costs one transform per distinct recipe, however many events it holds.

Guarantees: every number is an upper bound. Mass outside the window of the transform counts as
infinite loss, negative round-off is set to zero, and ``rounding`` bounds what round-off can hide.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from dp_accounting.pld import privacy_loss_mechanism  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from common.privacy.events import (
    Event,
    GaussianRelease,
    GroupPoissonGaussianSteps,
    NonPrivateRelease,
    PoissonGaussianSteps,
    SummedDiscreteGaussianSteps,
)

Direction: TypeAlias = Literal["remove", "add"]
SampledEvent: TypeAlias = PoissonGaussianSteps | GaussianRelease | GroupPoissonGaussianSteps
Floats: TypeAlias = NDArray[np.float64]

MAX_GRID_POINTS = 1 << 21
_MAX_CACHED_POINTS = 1 << 24
_REFINED_SINGLE = 1 << 13
_REFINED_WINDOW = 1 << 15
_MAX_HALVINGS = 7
_TAIL_MASS = 1e-15
_FARTHEST = 700.0  # beyond it exp overflows
_ROUNDING_PER_COMPOSITION = 1e-15
# Chernoff orders per unit of loss, from very concentrated to very wide compositions.
_ORDERS: Floats = np.geomspace(1e-4, 1e2, 25)


class GridTooLargeError(Exception):
    """The losses are so large that the grid would not fit; their epsilon is far beyond any use."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossDistribution:
    """Probabilities of the losses ``(lowest + i) * interval``, and of an infinite loss.

    ``rounding`` bounds the error of any sum of probabilities.
    """

    interval: float
    lowest: int
    probabilities: Floats
    infinity_mass: float
    rounding: float

    def delta(self, epsilon: float) -> float:
        """Upper bound of the hockey-stick divergence at ``epsilon``."""
        first = max(0, math.floor(epsilon / self.interval) - self.lowest)
        indices = np.arange(first, len(self.probabilities)) + self.lowest
        gaps = indices * self.interval - epsilon
        above = gaps > 0
        divergence = float(np.dot(-np.expm1(-gaps[above]), self.probabilities[first:][above]))
        return min(1.0, self.infinity_mass + self.rounding + divergence)

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon (at least 0) whose divergence is at most ``delta``."""
        certain = self.infinity_mass + self.rounding
        if certain >= delta:
            return math.inf
        first = max(1, self.lowest)
        probabilities = self.probabilities[first - self.lowest :]
        # Mass from each positive loss upwards; epsilon lies below the last one that exceeds delta.
        upper = certain + np.cumsum(probabilities[::-1])[::-1]
        heavy = int(np.count_nonzero(upper > delta))
        if heavy == 0:
            return 0.0
        reference = (first + heavy - 1) * self.interval
        # exp(reference - loss) must not overflow, and so far down the divergence is above delta.
        start = max(0, heavy - math.floor(600 / self.interval))
        losses = np.arange(first + start, first + len(probabilities)) * self.interval
        upper = upper[start:]
        weights = np.exp(reference - losses) * probabilities[start:]
        lower = np.cumsum(weights[::-1])[::-1]
        with np.errstate(over="ignore", invalid="ignore"):
            divergences = upper - np.exp(losses - reference) * lower
        above = np.flatnonzero(divergences[: heavy - start] > delta)
        # Between two grid points delta(eps) = upper - exp(eps) * lower, which is solved.
        cell = int(above[-1]) + 1 if len(above) else 0
        if cell == len(losses):
            return float(losses[-1])
        if upper[cell] <= delta:
            return float(losses[cell - 1])
        return max(0.0, reference + math.log((upper[cell] - delta) / lower[cell]))

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """Upper bound of P(upper accepts) over tests with P(lower accepts) as given."""
        losses = (np.arange(len(self.probabilities)) + self.lowest) * self.interval
        usable = np.abs(losses) <= _FARTHEST
        losses = losses[usable]
        # What the lower one puts on each loss and all above it. Between two losses the bound is
        # linear in exp(epsilon), and falls as long as that is more than the false positives.
        lower = np.cumsum((np.exp(-losses) * self.probabilities[usable])[::-1])[::-1]
        turn = int(np.count_nonzero(lower > false_positive_rate))
        # rounding can move the valley by a loss; any epsilon gives a valid bound
        nearby = losses[max(0, turn - 2) : turn + 2]
        bounds = (math.exp(one) * false_positive_rate + self.delta(one) for one in (0.0, *nearby))
        return min(1.0, *bounds)

    def log_moments(self) -> Floats:
        """Give log E[exp(order * (loss - lowest))], both signs of each Chernoff order: (2, 25)."""
        positive = self.probabilities > 0
        shifts = np.arange(len(self.probabilities))[positive] * self.interval
        logs = np.log(self.probabilities[positive])
        moments = np.empty((2, len(_ORDERS)))
        for column, order in enumerate(_ORDERS):
            for row, sign in enumerate((1.0, -1.0)):
                exponents = sign * order * shifts + logs
                top = float(exponents.max())
                moments[row, column] = top + math.log(float(np.exp(exponents - top).sum()))
        return moments


def _mechanism(event: SampledEvent, direction: Direction) -> Any:
    adjacency = (
        privacy_loss_mechanism.AdjacencyType.REMOVE
        if direction == "remove"
        else privacy_loss_mechanism.AdjacencyType.ADD
    )
    match event:
        case PoissonGaussianSteps():
            return privacy_loss_mechanism.GaussianPrivacyLoss(
                event.noise_multiplier,
                sampling_prob=event.sampling_rate,
                adjacency_type=adjacency,
            )
        case GaussianRelease():
            return privacy_loss_mechanism.GaussianPrivacyLoss(
                event.noise_multiplier, adjacency_type=adjacency
            )
        case GroupPoissonGaussianSteps():
            drawn, chances = event.sensitivities()
            return privacy_loss_mechanism.MixtureGaussianPrivacyLoss(
                event.noise_multiplier, drawn, chances, adjacency_type=adjacency
            )


class _Cache:
    """The most recently used single losses and their moments, at most 128 MiB of them."""

    def __init__(self) -> None:
        self._entries: OrderedDict[object, tuple[LossDistribution, Floats]] = OrderedDict()
        self._points = 0
        self._lock = threading.Lock()

    def get(
        self, event: Event, direction: Direction, interval: float
    ) -> tuple[LossDistribution, Floats]:
        key = (event, direction, interval)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        one = of_one(event, direction, interval)
        entry = (one, one.log_moments())
        with self._lock:
            if key not in self._entries:
                self._points += len(one.probabilities)
            self._entries[key] = entry
            while self._points > _MAX_CACHED_POINTS and len(self._entries) > 1:
                _, (oldest, _) = self._entries.popitem(last=False)
                self._points -= len(oldest.probabilities)
        return entry


_cache = _Cache()


def of_one(event: Event, direction: Direction, interval: float) -> LossDistribution:
    """The loss of doing ``event``'s mechanism once (its count is ignored).

    Raises:
        GridTooLargeError: The grid would pass `MAX_GRID_POINTS`.
    """
    if isinstance(event, NonPrivateRelease | SummedDiscreteGaussianSteps):
        raise ValueError("such an event has no privacy loss distribution of its own")
    # Half the squared ratio of sensitivity (at least 1) to noise is a loss that occurs.
    if 0.5 / event.noise_multiplier**2 / interval > MAX_GRID_POINTS:
        raise GridTooLargeError
    mechanism = _mechanism(event, direction)
    bounds = mechanism.connect_dots_bounds()
    lowest = math.floor(cast(float, bounds.epsilon_lower) / interval)
    highest = math.ceil(cast(float, bounds.epsilon_upper) / interval)
    if highest - lowest + 1 > MAX_GRID_POINTS:
        raise GridTooLargeError
    grid = np.arange(lowest, highest + 1) * interval
    with np.errstate(over="ignore", under="ignore"):
        deltas = np.clip(cast(Floats, mechanism.get_delta_for_epsilon(grid)), 0.0, 1.0)
    deltas = np.minimum.accumulate(deltas)
    if len(deltas) == 1:
        probabilities = np.array([1.0 - deltas[0]])
    else:
        steps = np.diff(deltas)
        probabilities = np.empty_like(deltas)
        probabilities[0] = 1.0 - deltas[0] + steps[0] / math.expm1(interval)
        probabilities[1:-1] = (steps[1:] - steps[:-1] * math.exp(interval)) / math.expm1(interval)
        probabilities[-1] = steps[-1] / math.expm1(-interval)
    return LossDistribution(
        interval=interval,
        lowest=lowest,
        probabilities=np.maximum(probabilities, 0.0),
        infinity_mass=float(deltas[-1]),
        rounding=0.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Window:
    """Where the composed loss lies but for the tail mass, in grid points above its lowest value."""

    singles: tuple[LossDistribution, ...]
    counts: tuple[int, ...]
    low: int
    high: int

    @property
    def size(self) -> int:
        return self.high - self.low + 1


def _window(parts: Sequence[tuple[Event, int]], direction: Direction, interval: float) -> _Window:
    cached = [_cache.get(event, direction, interval) for event, _ in parts]
    counts = tuple(count for _, count in parts)
    log_moments = np.zeros((2, len(_ORDERS)))
    for (_, moments), count in zip(cached, counts, strict=True):
        log_moments += count * moments
    # Chernoff: outside [low, high] lies at most the tail mass, half on each side.
    margin = math.log(2.0 / _TAIL_MASS)
    widest = sum(
        n * (len(one.probabilities) - 1) for (one, _), n in zip(cached, counts, strict=True)
    )
    high = min(widest, math.ceil(float(np.min((log_moments[0] + margin) / _ORDERS)) / interval))
    low = max(0, math.floor(float(np.max(-(log_moments[1] + margin) / _ORDERS)) / interval))
    return _Window(
        singles=tuple(one for one, _ in cached), counts=counts, low=min(low, high), high=high
    )


def refined(parts: Sequence[tuple[Event, int]], interval: float) -> float:
    """``interval`` halved while grids stay small, for losses that it would blur.

    Many steps of tiny loss each gain a whole interval from rounding; their grids are short, so
    halving costs nothing. More events never make the grid finer, and a coarser grid of nested
    points dominates a finer one, so that epsilon still never falls when something is added.

    Raises:
        GridTooLargeError: Even the grid at ``interval`` would pass `MAX_GRID_POINTS`.
    """
    halvings = 0
    while True:
        width = interval / 2**halvings
        window = _window(parts, "remove", width)
        longest = max(len(one.probabilities) for one in window.singles)
        room = min(_REFINED_SINGLE / longest, _REFINED_WINDOW / window.size)
        further = min(_MAX_HALVINGS - halvings, math.floor(math.log2(room)) if room >= 2 else 0)
        if further <= 0:
            return width
        halvings += further


def compose(
    parts: Sequence[tuple[Event, int]], direction: Direction, interval: float
) -> LossDistribution:
    """The loss of doing each mechanism as often as its count says.

    Raises:
        GridTooLargeError: The window of the transform would pass `MAX_GRID_POINTS`.
    """
    window = _window(parts, direction, interval)
    if window.size > MAX_GRID_POINTS:
        raise GridTooLargeError
    size = _transform_size(window.size)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    log_finite, lowest = 0.0, window.low
    for one, count in zip(window.singles, window.counts, strict=True):
        spectrum *= _power(np.fft.rfft(_wrap(one.probabilities, size), size), count)
        log_finite += count * math.log1p(-one.infinity_mass)
        lowest += count * one.lowest
    composed = np.roll(np.fft.irfft(spectrum, size), -(window.low % size))[: window.size]
    return LossDistribution(
        interval=interval,
        lowest=lowest,
        probabilities=np.maximum(composed, 0.0),
        infinity_mass=_TAIL_MASS - math.expm1(log_finite),
        rounding=_ROUNDING_PER_COMPOSITION * (1 + sum(window.counts)),
    )


def _power(values: NDArray[np.complex128], count: int) -> NDArray[np.complex128]:
    """``values ** count`` by squaring: faster than the general power, and more exact."""
    result = np.ones_like(values)
    while count:
        if count & 1:
            result *= values
        count >>= 1
        if count:
            values = values * values
    return result


def _wrap(probabilities: Floats, size: int) -> Floats:
    # A single loss may lie outside the window of the whole: it is folded as the transform would.
    if len(probabilities) <= size:
        return probabilities
    folded = np.zeros(math.ceil(len(probabilities) / size) * size)
    folded[: len(probabilities)] = probabilities
    return folded.reshape(-1, size).sum(axis=0)


def _transform_size(least: int) -> int:
    candidates = (
        factor << max(0, math.ceil(math.log2(least / factor))) for factor in (2, 6, 10, 18)
    )
    return min(size for size in candidates if size >= least)
