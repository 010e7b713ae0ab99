"""How far a site's weights can have moved in one round, if it did what the recipe says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from common.messages import Recipe, Weights

# Of the local optimisers as torch has them by default.
_ADAM_BETAS = (0.9, 0.999)
_FAILURE = 1e-9
_ROUNDING = 1.01  # 32-bit sums; clipped norms of bf16 gradients are up to 0.3 % too long


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """How far weights moved.

    Attributes:
        norm: Euclidean length of the update over all weights.
        largest: largest absolute change of one weight.
    """

    norm: float
    largest: float

    @classmethod
    def between(cls, before: Weights, after: Weights) -> Move:
        """From ``before`` to ``after``, of the same names and shapes."""
        squared, largest = 0.0, 0.0
        for name, value in after.items():
            change = value.astype(np.float64) - before[name]
            squared += float(np.sum(change * change))
            largest = max(largest, float(np.max(np.abs(change), initial=0.0)))
        return cls(norm=math.sqrt(squared), largest=largest)

    @classmethod
    def from_zero(cls, weights: Weights) -> Move:
        """From weights that are all zero."""
        return cls.between({name: np.zeros_like(value) for name, value in weights.items()}, weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """The longest honest `Move`; infinite where nothing bounds it.

    An honest site passes ``norm`` but with probability below 1e-9 a round; ``largest`` never.
    """

    norm: float = math.inf
    largest: float = math.inf

    def passed_by(self, move: Move) -> bool:
        """Whether no honest site could have moved so far."""
        return move.norm > self.norm or move.largest > self.largest


def bound(recipe: Recipe, *, num_patients: int, num_weights: int, control: float = 0.0) -> Bound:
    """What ``recipe`` allows a site in one round.

    Args:
        recipe: that it was asked to follow.
        num_patients: of the site.
        num_weights: numbers that travel.
        control: Euclidean length of the control variate that was sent; 0 without.
    """
    if recipe.optimizer == "adam":
        return Bound(largest=_ROUNDING * recipe.learning_rate * _adam_steps(recipe.steps))
    if not recipe.private or recipe.unit != "patient":
        return Bound()  # gradients without a bound, or a number of images that only the site knows
    reach = _responses(recipe)
    drawn = _drawn(recipe, num_patients)
    expected = recipe.sampling_rate * num_patients
    clipped = recipe.max_grad_norm * drawn * float(np.sum(np.abs(reach)))
    std = recipe.noise_multiplier * recipe.max_grad_norm / expected
    noise = std * math.sqrt(float(np.sum(reach**2))) * _chi(num_weights, _FAILURE / 4)
    # A site's own control variate is the mean of its noisy gradients of an earlier round.
    own = recipe.max_grad_norm * drawn + std * _chi(num_weights, _FAILURE / 4) / math.sqrt(
        recipe.steps
    )
    correction = (control + own) * float(np.sum(np.abs(reach))) if recipe.controlled else 0.0
    return Bound(norm=_ROUNDING * (clipped + noise + correction))


def _adam_steps(steps: int) -> float:
    """How far ``steps`` steps of Adam take one weight, in learning rates, whatever the gradients.

    With m_t and v_t the moving means, Cauchy and Schwarz give m_t^2 <= v_t (1 - b1)^2 / (1 - b2)
    sum_{j<t} (b1^2 / b2)^j, and with the corrections for their start a step is at most

        (1 - b1) / (1 - b1^t) sqrt((1 - b2^t) / (1 - b2) sum_{j<t} (b1^2 / b2)^j)

    learning rates long: 1 for t = 1, 7.27 in the limit.

    >>> round(_adam_steps(1), 6), _adam_steps(5) < 5.3
    (1.0, True)
    """
    first, second = _ADAM_BETAS
    t = np.arange(1, steps + 1, dtype=np.float64)
    ratio = first**2 / second
    geometric = (1 - ratio**t) / (1 - ratio)
    longest = (1 - first) / (1 - first**t) * np.sqrt((1 - second**t) / (1 - second) * geometric)
    return float(np.sum(longest))


def _responses(recipe: Recipe) -> NDArray[np.float64]:
    """(K,) how far one unit of gradient in each of the K steps has moved a weight at the end.

    Momentum and the proximal term are linear: b <- momentum b + g + mu u, u <- u - lr b, where u is
    the way from the shared model. So each step's gradient adds its own response.
    """
    steps, rate = recipe.steps, recipe.learning_rate
    moved, velocity = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        gradient = np.zeros(steps)
        gradient[step] = 1.0
        velocity = recipe.momentum * velocity + gradient + recipe.proximal_mu * moved
        moved = moved - rate * velocity
    return moved


def _drawn(recipe: Recipe, num_patients: int) -> float:
    """Patients drawn in any one of the steps, over the number expected, but for 1e-9 / 4.

    Synthetic images that join in a fixed number bring this closer to 1; where they are drawn like
    patients, only the certain bound holds.
    """
    certain = 1 / recipe.sampling_rate
    if recipe.synthetic_as_patients:
        return certain
    # The control variate is of an earlier round, which has to hold as well.
    failure = _FAILURE / 4 / recipe.steps
    most = float(binom.isf(failure, num_patients, recipe.sampling_rate))
    return min(certain, most / (recipe.sampling_rate * num_patients))


def _chi(freedom: int, failure: float) -> float:
    """Length that a standard normal vector passes with probability below ``failure``.

    Laurent and Massart 2000, lemma 1: P(chi^2_d >= d + 2 sqrt(d x) + 2 x) <= e^-x.
    """
    x = -math.log(failure)
    return math.sqrt(freedom + 2 * math.sqrt(freedom * x) + 2 * x)
