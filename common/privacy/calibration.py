"""From a target epsilon to a noise multiplier, and from a budget to the rounds it still allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from common.privacy.accountants import Accountant, RdpAccountant
from common.privacy.budget import Budget
from common.privacy.events import (
    Event,
    GaussianRelease,
    GroupPoissonGaussianSteps,
    NonPrivateRelease,
    PoissonGaussianSteps,
    SummedDiscreteGaussianSteps,
    merge,
    repeat,
    split,
)

_LEAST_NOISE = 1e-3
_MOST_NOISE = 1e7


def calibrate(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: Accountant,
    before: Sequence[Event] = (),
) -> float:
    """Smallest noise multiplier (to five digits, rounded up) that keeps within ``epsilon``.

    What was released ``before``, about the same units, counts as well.

    Guarantees: the same accountant reads at most ``epsilon`` for the returned noise, and at least
    99 % of it wherever less noise would pass it.

    Raises:
        ValueError: A bound does not hold, no step would be taken, or no noise suffices: because of
            what was released before, or the accountant cannot resolve so small a ``delta``.

    >>> from common.privacy.accountants import build
    >>> calibrate(epsilon=8.0, delta=1e-5, sampling_rate=0.25, steps=40, accountant=build("pld"))
    1.2352
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon!r}: must be a finite number above 0")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r}: must lie between 0 and 1")
    if steps < 1:
        raise ValueError(f"steps={steps!r}: must be at least 1, no step needs no noise")

    def reading(by: Accountant, known: Sequence[Event]) -> Callable[[float], float]:
        def at(noise: float) -> float:
            event = PoissonGaussianSteps(
                sampling_rate=sampling_rate, noise_multiplier=noise, steps=steps
            )
            return by.epsilon([*known, event], delta)

        return at

    # A guess only: what was before may leave nothing under RDP, and something under PLD.
    rough = _smallest(reading(RdpAccountant(), ()), epsilon, guess=1.0, tolerance=0.05)
    guess = rough if accountant.name == "rdp" else rough * 0.9
    return _smallest(reading(accountant, before), epsilon, guess=guess, tolerance=0.001)


def _smallest(
    epsilon_at: Callable[[float], float], target: float, *, guess: float, tolerance: float
) -> float:
    """Noise whose epsilon is at most ``target`` and at least ``(1 - tolerance) * target``."""
    high, factor = guess, 1.1
    high_epsilon = epsilon_at(high)
    low, low_epsilon = high, high_epsilon
    while high_epsilon > target:
        low, low_epsilon = high, high_epsilon
        high *= factor
        if high > _MOST_NOISE:
            raise ValueError(
                f"epsilon={target!r}: no noise multiplier up to {_MOST_NOISE:g} reaches it; "
                "raise epsilon or delta"
            )
        high_epsilon, factor = epsilon_at(high), factor * factor
    while low_epsilon <= target:
        high, high_epsilon = low, low_epsilon
        low /= factor
        if low < _LEAST_NOISE:
            return _rounded_up(high)
        low_epsilon, factor = epsilon_at(low), factor * factor
    halve = False
    while high_epsilon < (1 - tolerance) * target and high / low > 1 + 1e-6:
        middle = _between((low, low_epsilon), (high, high_epsilon), target, halve=halve)
        middle_epsilon = epsilon_at(middle)
        # False position alone can creep along one side: every other step halves.
        halve = not halve
        if middle_epsilon <= target:
            high, high_epsilon = middle, middle_epsilon
        else:
            low, low_epsilon = middle, middle_epsilon
    return _rounded_up(high)


def _between(
    low: tuple[float, float], high: tuple[float, float], target: float, *, halve: bool
) -> float:
    (low_noise, low_epsilon), (high_noise, high_epsilon) = low, high
    weight = 0.5
    if not halve and math.isfinite(low_epsilon) and high_epsilon > 0:
        aim = math.log(target * 0.9997)
        weight = (math.log(low_epsilon) - aim) / (math.log(low_epsilon) - math.log(high_epsilon))
        weight = min(0.98, max(0.02, weight))
    return math.exp((1 - weight) * math.log(low_noise) + weight * math.log(high_noise))


def _rounded_up(noise: float) -> float:
    digits = 4 - math.floor(math.log10(noise))
    rounded = round(noise, digits)
    return rounded if rounded >= noise else round(rounded + 10.0**-digits, digits)


def remaining_rounds(
    *,
    budget: Budget,
    spent: Sequence[Event],
    recipe: Sequence[Event],
    limit: int = 1_000_000,
) -> int:
    """How many more times ``recipe`` fits into ``budget`` after ``spent``, at most ``limit``.

    >>> step = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=2.0, steps=10)
    >>> remaining_rounds(budget=Budget(epsilon=2.0, delta=1e-5), spent=[step], recipe=[step])
    6
    """
    before = merge(spent)
    one_round = [split(event) for event in merge(recipe)]

    def fits(rounds: int) -> bool:
        asked = [repeat(event, count * rounds) for event, count in one_round]
        return budget.allows([*before, *asked])

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def remaining_steps(
    *, budget: Budget, spent: Sequence[Event], recipe: Event, limit: int = 1_000_000
) -> int:
    """How many more single steps of ``recipe`` (its own count is ignored) fit into ``budget``."""
    return remaining_rounds(budget=budget, spent=spent, recipe=[repeat(recipe, 1)], limit=limit)


def one_of_each(events: Sequence[Event]) -> tuple[Event, ...]:
    """The recipe of ``events``, each mechanism done once."""
    return tuple(split(event)[0] for event in merge(events))


def describe(events: Sequence[Event]) -> str:
    """The recipe in words."""
    words = list[str]()
    for event in merge(events):
        match event:
            case PoissonGaussianSteps() | GroupPoissonGaussianSteps():
                words.append(
                    f"{event.steps} steps at rate {event.sampling_rate:.4g}, "
                    f"noise multiplier {event.noise_multiplier:.5g}"
                )
            case SummedDiscreteGaussianSteps():
                bound = event.gaussian()
                words.append(
                    f"{event.steps} sums at rate {event.sampling_rate:.4g}, noise multiplier "
                    f"{bound.noise_multiplier:.5g} of {event.num_shares} sites together"
                )
            case GaussianRelease():
                words.append(
                    f"{event.count} Gaussian releases, "
                    f"noise multiplier {event.noise_multiplier:.5g}"
                )
            case NonPrivateRelease():
                words.append("a release without noise")
    return "; ".join(words) or "nothing"
