"""The forecast is the round in which a ledger with that budget does refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from common.config import Config, FederationConfig, PrivacyConfig
from common.privacy.budget import Budget
from common.privacy.events import PoissonGaussianSteps
from server.forecast import rounds_left
from server.recipe import plan

RECIPE = plan(
    Config(
        privacy=PrivacyConfig(noise_multiplier=1.0, sampling_rate=0.3, delta=1e-5),
        federation=FederationConfig(rounds=20, steps_per_round=2),
    ),
    num_patients=100,
)
ROUND = PoissonGaussianSteps(sampling_rate=0.3, noise_multiplier=1.0, steps=2)


@pytest.mark.parametrize("cap", [1.5, 3.0, 5.0])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_it_ends_where_the_budget_does(cap: float, done: int) -> None:
    budget = Budget(epsilon=cap, delta=1e-5)
    allowed = 0
    while budget.allows([ROUND] * (allowed + 1)):
        allowed += 1
    spent = budget.spent([ROUND] * done) if done else 0.0
    expected = max(0, allowed - done)
    assert rounds_left(RECIPE, epsilon=spent, budget=cap, at_most=50) == expected
    assert rounds_left(RECIPE, epsilon=spent, budget=cap, at_most=1) == min(1, expected)


def test_without_a_budget_or_privacy_it_never_ends() -> None:
    assert rounds_left(RECIPE, epsilon=3.0, budget=math.inf, at_most=7) == 7
    free = replace(RECIPE, mechanism="none", noise_multiplier=0.0)
    assert rounds_left(free, epsilon=0.0, budget=1.0, at_most=7) == 7


def test_a_spent_budget_leaves_nothing() -> None:
    assert rounds_left(RECIPE, epsilon=9.0, budget=3.0, at_most=7) == 0
