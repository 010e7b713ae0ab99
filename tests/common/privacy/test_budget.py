from __future__ import annotations

import math
from dataclasses import replace

import pytest

from common.privacy.budget import Budget
from common.privacy.events import GaussianRelease, NonPrivateRelease, PoissonGaussianSteps


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_a_cap_is_above_zero(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon="):
        Budget(epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(ValueError, match="delta="):
        Budget(epsilon=8.0, delta=delta)


def test_the_accountant_must_be_one_we_trust() -> None:
    with pytest.raises(ValueError, match="gdp"):
        Budget(epsilon=8.0, delta=1e-5, accountant="gdp")


def test_what_would_exceed() -> None:
    budget = Budget(epsilon=2.0, delta=1e-5)
    release = GaussianRelease(noise_multiplier=4.0)
    assert budget.allows([release])
    assert not budget.would_exceed([release], [release])
    assert budget.would_exceed([release] * 4, [release])
    raw = NonPrivateRelease(reason="public study")
    assert budget.would_exceed([], [raw])
    assert Budget(epsilon=math.inf, delta=1e-5).allows([raw])


def test_who_may_adapt_is_held_by_renyi_as_soon_as_steps_differ() -> None:
    """The reviewer's plan: the second part is chosen by what the first one released."""

    def steps(rate: float, noise: float, number: int) -> PoissonGaussianSteps:
        return PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=number)

    fixed = Budget(epsilon=4.0, delta=1e-5)
    adaptive = replace(fixed, adaptive=True)
    first = steps(0.5, 3.0, 20)
    for second in (steps(0.5, 10.0, 87), steps(0.5, 1.5, 1), steps(0.02, 0.8, 84)):
        assert fixed.allows([first, second])
        assert not adaptive.allows([first, second])
        refusing = adaptive.refusing([first, second])
        assert refusing is not None
        assert refusing.accountant == "rdp"
        assert adaptive.allows([first, second]) is replace(fixed, accountant="rdp").allows(
            [first, second]
        )
    alike = [first, *[steps(0.5, 3.0, 1)] * 6]
    assert adaptive.allows(alike)
    assert not replace(fixed, accountant="rdp").allows(alike)
