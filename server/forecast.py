"""When each site's budget will end, if the rounds go on as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from common.messages import Recipe
from common.privacy import accountants
from common.privacy.events import Event, PoissonGaussianSteps

_MOST_ROUNDS = 1 << 20


def rounds_left(
    recipe: Recipe,
    *,
    epsilon: float,
    budget: float,
    at_most: int,
    before: Sequence[Event] = (),
) -> int:
    """How many more rounds of ``recipe`` the budget of a site will do for.

    Exact where the ledger holds rounds of this recipe and ``before`` alone; whatever else it holds
    is taken for as many rounds as cost at least as much, so the forecast is then early rather than
    late.

    Args:
        recipe: of every round.
        epsilon: spent so far.
        budget: the site's cap.
        at_most: no more than this is asked for.
        before: what is known to be in the ledger beside rounds of this recipe.
    """
    if math.isinf(budget) or not recipe.private:
        return at_most

    def fits(rounds: int) -> bool:
        return _epsilon(recipe, done + rounds, before) <= budget

    done = 0
    if epsilon * (1 - 1e-9) > _epsilon(recipe, 0, before):
        done = _smallest(lambda rounds: _epsilon(recipe, rounds, before) >= epsilon * (1 - 1e-9))
    if fits(at_most):
        return at_most
    return _smallest(lambda rounds: not fits(rounds)) - 1


def _epsilon(recipe: Recipe, rounds: int, before: Sequence[Event]) -> float:
    steps = PoissonGaussianSteps(
        sampling_rate=recipe.sampling_rate,
        noise_multiplier=recipe.noise_multiplier,
        steps=rounds * recipe.steps,
    )
    return accountants.build(recipe.accountant).epsilon([*before, steps], recipe.delta)


def _smallest(holds: Callable[[int], bool]) -> int:
    """The smallest positive number for which ``holds``, which stays so for all larger ones."""
    high = 1
    while high < _MOST_ROUNDS and not holds(high):
        high *= 2
    low = high // 2  # does not hold, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
