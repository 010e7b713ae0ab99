from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy import accountants, discrete
from common.privacy.events import (
    GaussianRelease,
    PoissonGaussianSteps,
    SummedDiscreteGaussianSteps,
    alone,
    dump,
    load,
    merge,
    patient_level,
    repeat,
    rests_on_others,
    split,
    within,
)

SUMS = SummedDiscreteGaussianSteps(
    sampling_rate=0.25, clip=65536, num_weights=1538, share_std=65536, num_shares=4, steps=20
)


def _shares_of_noise(std: int, count: int) -> np.ndarray:
    """Probabilities of the sum of ``count`` discrete Gaussians, by convolution."""
    reach = 14 * std
    one = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2.0 * std**2))
    one /= one.sum()
    total = one
    for _ in range(count - 1):
        total = np.convolve(total, one)
    return total


def _divergence(rate: float, shift: int, noise: np.ndarray, epsilon: float, *, add: bool) -> float:
    """Exact hockey-stick divergence of the sampled sum whose patient counts for ``shift``."""
    padding = np.zeros(shift)
    without = np.concatenate([noise, padding])
    sampled = rate * np.concatenate([padding, noise]) + (1 - rate) * without
    upper, lower = (without, sampled) if add else (sampled, without)
    return float(np.maximum(upper - math.exp(epsilon) * lower, 0).sum())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize("add", [False, True])
def test_discrete_sums_cost_no_more_than_the_gaussian_that_stands_for_them(
    count: int, rate: float, add: bool
) -> None:
    std, shift = 16, 24
    noise = _shares_of_noise(std, count)
    adjacency = privacy_loss_mechanism.AdjacencyType
    # what accountants are given, in whole numbers of the sum instead of norms of a patient
    ours = discrete.noise_multiplier(clip=64, num_weights=1, share_std=std, num_shares=count)
    ours *= math.sqrt(discrete.max_norm_squared(64, 1))
    too_good = math.sqrt(count * std**2 + discrete.BASE_STD**2)
    bounds = {
        name: privacy_loss_mechanism.GaussianPrivacyLoss(
            deviation / shift,
            sampling_prob=rate,
            adjacency_type=adjacency.ADD if add else adjacency.REMOVE,
        )
        for name, deviation in (("ours", ours), ("too good", too_good))
    }
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0):
        exact = _divergence(rate, shift, noise, epsilon, add=add)
        assert exact <= bounds["ours"].get_delta_for_epsilon(epsilon) + 1e-14
        if exact > 1e-9:  # a Gaussian with as much more noise promises too much
            assert exact > bounds["too good"].get_delta_for_epsilon(epsilon)


@settings(deadline=None)
@given(clip=st.integers(64, 1 << 20), weights=st.integers(1, 1 << 28), shares=st.integers(1, 100))
def test_the_bound_is_below_what_rounding_can_reach_and_close_for_fine_numbers(
    clip: int, weights: int, shares: int
) -> None:
    limit = discrete.max_norm_squared(clip, weights)
    assert clip**2 < limit <= (clip + math.sqrt(weights)) ** 2 * (1 + 1e-12)
    assert discrete.log_distortion(weights, shares) < -150
    noise = discrete.noise_multiplier(
        clip=clip, num_weights=weights, share_std=clip + 16, num_shares=shares
    )
    assert noise <= math.sqrt(shares) * (clip + 16) / clip


def test_an_event_of_sums_reads_as_its_gaussian_bound() -> None:
    gaussian = SUMS.gaussian()
    assert 1.9999 < gaussian.noise_multiplier < 2.0
    for name in accountants.NAMES:
        accountant = accountants.build(name)
        assert accountant.epsilon([SUMS], 1e-5) == accountant.epsilon([gaussian], 1e-5)
        both = [SUMS, GaussianRelease(noise_multiplier=5.0)]
        assert accountant.epsilon(both, 1e-5) == accountant.epsilon([gaussian, both[1]], 1e-5)
        assert accountant.epsilon([SUMS], 1e-5) < accountant.epsilon([alone(SUMS)], 1e-5)


def test_alone_only_the_sites_own_share_counts() -> None:
    assert alone(SUMS).gaussian().noise_multiplier == pytest.approx(1.0, rel=1e-4)
    local = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.0, steps=3)
    assert alone(local) == local
    assert rests_on_others([local, SUMS])
    assert not rests_on_others([local, alone(SUMS)])


def test_events_of_sums_are_counted_like_others() -> None:
    one, count = split(SUMS)
    assert count == 20
    assert repeat(one, 20) == SUMS
    assert merge([SUMS, one]) == (repeat(one, 21),)
    assert within([one], [SUMS])
    assert not within([alone(one)], [SUMS])
    assert load(dump(SUMS)) == SUMS
    assert patient_level(SUMS, 3) == patient_level(SUMS.gaussian(), 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"share_std": 15},
        {"clip": 0},
        {"num_shares": 0},
        {"num_weights": 1.5},
        {"sampling_rate": 0.0},
        {"steps": -1},
    ],
)
def test_fields_out_of_bounds_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        load({**dump(SUMS), **changes})
