from __future__ import annotations

import math

import pytest
from dp_accounting import gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy.accountants import build
from common.privacy.budget import Budget
from common.privacy.calibration import (
    _rounded_up,  # pyright: ignore[reportPrivateUsage]
    calibrate,
    describe,
    remaining_rounds,
    remaining_steps,
)
from common.privacy.events import GaussianRelease, NonPrivateRelease, PoissonGaussianSteps, repeat


def steps(rate: float, noise: float, count: int) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=count)


@pytest.mark.parametrize("name", ["pld", "rdp"])
@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "count"),
    [
        (8.0, 1e-5, 0.25, 40),
        (1.0, 1e-4, 1 / 9, 2700),
        (3.0, 1e-5, 1.0, 30),
        (0.1, 1e-5, 1e-3, 100_000),
        (8.0, 1e-7, 0.01, 100_000),
        (2.0, 1e-5, 0.5, 1),
        (0.01, 1e-6, 0.5, 100),
        (50.0, 1e-5, 0.25, 40),
    ],
)
def test_noise_meets_the_target_closely(
    name: str, epsilon: float, delta: float, rate: float, count: int
) -> None:
    accountant = build(name)
    noise = calibrate(
        epsilon=epsilon, delta=delta, sampling_rate=rate, steps=count, accountant=accountant
    )
    reading = accountant.epsilon([steps(rate, noise, count)], delta)
    assert 0.99 * epsilon <= reading <= epsilon


@settings(max_examples=10, deadline=None)
@given(st.floats(0.3, 12.0), st.floats(0.005, 1.0), st.integers(1, 2000))
def test_noise_meets_any_target(epsilon: float, rate: float, count: int) -> None:
    accountant = build("pld")
    noise = calibrate(
        epsilon=epsilon, delta=1e-5, sampling_rate=rate, steps=count, accountant=accountant
    )
    assert 0.99 * epsilon <= accountant.epsilon([steps(rate, noise, count)], 1e-5) <= epsilon


@pytest.mark.parametrize(
    ("epsilon", "published"), [(1, 20.3), (6, 4.34), (12, 2.54), (20, 1.78), (60, 0.96)]
)
def test_published_noise_is_found_again(epsilon: float, published: float) -> None:
    noise = calibrate(
        epsilon=epsilon, delta=1e-4, sampling_rate=1 / 9, steps=2700, accountant=build("rdp")
    )
    assert noise == pytest.approx(published, abs=0.006)


def test_full_batch_noise_is_the_analytic_one() -> None:
    exact = gaussian_mechanism.get_sigma_gaussian(2.0, 1e-5) * math.sqrt(50)
    noise = calibrate(epsilon=2.0, delta=1e-5, sampling_rate=1.0, steps=50, accountant=build("pld"))
    assert exact <= noise <= exact * 1.001


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", 0.0), ("epsilon", math.inf), ("epsilon", math.nan), ("delta", 1.0), ("steps", 0)],
)
def test_bad_targets_are_named(name: str, value: float) -> None:
    arguments: dict[str, float] = {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.1, "steps": 5}
    with pytest.raises(ValueError, match=f"^{name}="):
        calibrate(**{**arguments, name: value}, accountant=build("pld"))  # pyright: ignore[reportArgumentType]


def test_a_delta_below_resolution_says_so() -> None:
    with pytest.raises(ValueError, match=r"raise epsilon or delta"):
        calibrate(epsilon=1.0, delta=1e-16, sampling_rate=0.1, steps=100, accountant=build("pld"))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10), st.floats(1.0, 6.0))
def test_remaining_rounds_fit_and_one_more_does_not(done: int, cap: float) -> None:
    recipe = steps(0.1, 2.0, 10)
    budget = Budget(epsilon=cap, delta=1e-5)
    spent = [recipe] * done
    rounds = remaining_rounds(budget=budget, spent=spent, recipe=[recipe])
    if rounds:
        assert budget.allows([*spent, *[recipe] * rounds])
    assert not budget.allows([*spent, *[recipe] * (rounds + 1)])


def test_a_calibrated_plan_fits_its_own_budget_exactly() -> None:
    noise = calibrate(
        epsilon=8.0, delta=1e-5, sampling_rate=0.25, steps=8 * 5, accountant=build("pld")
    )
    recipe = steps(0.25, noise, 5)
    budget = Budget(epsilon=8.0, delta=1e-5)
    assert remaining_rounds(budget=budget, spent=[], recipe=[recipe]) == 8
    assert remaining_steps(budget=budget, spent=[recipe] * 7, recipe=recipe) == 5
    assert remaining_steps(budget=budget, spent=[recipe] * 8, recipe=recipe) == 0


def test_without_a_cap_the_limit_is_returned() -> None:
    budget = Budget(epsilon=math.inf, delta=1e-5)
    recipe = steps(0.1, 2.0, 10)
    assert remaining_rounds(budget=budget, spent=[], recipe=[recipe], limit=777) == 777
    capped = Budget(epsilon=8.0, delta=1e-5)
    raw = NonPrivateRelease(reason="raw")
    assert remaining_rounds(budget=capped, spent=[], recipe=[raw]) == 0


def test_a_recipe_in_words() -> None:
    recipe = [steps(0.1, 2.0, 3), steps(0.1, 2.0, 2), GaussianRelease(noise_multiplier=9.0)]
    assert describe(recipe) == (
        "5 steps at rate 0.1, noise multiplier 2; 1 Gaussian releases, noise multiplier 9"
    )
    assert describe([repeat(steps(0.1, 2.0, 3), 0)]) == "nothing"


@given(st.floats(1e-3, 1e7))
def test_noise_is_rounded_upwards_only(noise: float) -> None:
    assert noise <= _rounded_up(noise) <= noise * 1.00011
