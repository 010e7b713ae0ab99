from __future__ import annotations

import math

import pytest

from common.privacy.budget import Budget
from common.privacy.events import GaussianRelease, NonPrivateRelease


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
