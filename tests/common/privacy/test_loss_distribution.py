from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import gaussian_mechanism

from common.privacy import loss_distribution
from common.privacy.events import GaussianRelease, NonPrivateRelease, PoissonGaussianSteps


def log_delta(noise: float, epsilon: float) -> float:
    """Exact log delta of the Gaussian mechanism (Balle and Wang 2018, equation 6)."""
    from scipy.stats import norm

    upper = norm.logcdf(0.5 / noise - epsilon * noise)
    lower = epsilon + norm.logcdf(-0.5 / noise - epsilon * noise)
    return float(upper + np.log1p(-np.exp(lower - upper)))


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (30.0, 1000), (300.0, 100_000)])
@pytest.mark.parametrize("direction", ["remove", "add"])
def test_composing_gaussians_by_transform_is_never_below_the_exact_value(
    noise: float, count: int, direction: loss_distribution.Direction
) -> None:
    event = GaussianRelease(noise_multiplier=noise)
    interval = loss_distribution.refined([(event, count)], 1e-3)
    composed = loss_distribution.compose([(event, count)], direction, interval)
    total = noise / math.sqrt(count)
    for delta in (1e-2, 1e-5, 1e-7):
        exact = gaussian_mechanism.get_epsilon_gaussian(total, delta)
        assert exact <= composed.epsilon(delta) <= exact * 1.01 + 2e-3
    for epsilon in (0.0, 1.0, 3.0):
        exact = math.exp(log_delta(total, epsilon))
        assert exact <= composed.delta(epsilon) <= exact * 1.1 + 1e-9


def test_epsilon_is_where_delta_is_met() -> None:
    event = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.2, steps=1)
    composed = loss_distribution.compose([(event, 60)], "remove", 1e-3)
    for delta in (0.3, 1e-2, 1e-5, 1e-8):
        epsilon = composed.epsilon(delta)
        assert composed.delta(epsilon) <= delta * (1 + 1e-6)
        if epsilon > 0:
            assert composed.delta(epsilon - 1e-4) > delta
    assert composed.epsilon(0.999) == 0.0
    assert composed.epsilon(1e-16) == math.inf


def test_a_coarser_grid_reads_higher() -> None:
    event = PoissonGaussianSteps(sampling_rate=0.01, noise_multiplier=1.0, steps=1)
    readings = [
        loss_distribution.compose([(event, 5000)], "remove", 1e-3 / 2**halvings).epsilon(1e-5)
        for halvings in range(4)
    ]
    assert readings == sorted(readings, reverse=True)
    assert readings[0] > readings[3] + 1e-4


def test_more_events_never_refine_the_grid() -> None:
    tiny = PoissonGaussianSteps(sampling_rate=0.001, noise_multiplier=8.0, steps=1)
    large = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=0.8, steps=1)
    alone = loss_distribution.refined([(tiny, 1000)], 1e-3)
    assert alone < 1e-3
    assert alone <= loss_distribution.refined([(tiny, 50_000)], 1e-3)
    assert alone <= loss_distribution.refined([(tiny, 1000), (large, 10)], 1e-3) <= 1e-3


def test_losses_too_large_for_memory_are_refused_before_they_are_made() -> None:
    event = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1e-5, steps=1)
    with pytest.raises(loss_distribution.GridTooLargeError):
        loss_distribution.compose([(event, 1)], "remove", 1e-3)
    with pytest.raises(ValueError, match="no privacy loss distribution"):
        loss_distribution.of_one(NonPrivateRelease(reason="raw"), "remove", 1e-3)


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize(
    "event",
    [
        PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=0.8, steps=1),
        PoissonGaussianSteps(sampling_rate=1.0, noise_multiplier=6.0, steps=1),
        PoissonGaussianSteps(sampling_rate=0.05, noise_multiplier=40.0, steps=1),
    ],
    ids=repr,
)
def test_no_epsilon_gives_a_smaller_bound_of_true_positives(
    event: PoissonGaussianSteps, direction: loss_distribution.Direction
) -> None:
    """By looking at very many of them."""
    composed = loss_distribution.compose([(event, 10)], direction, 1e-3)
    for fpr in (0.0, 1e-4, 0.03, 0.5, 0.97, 1.0):
        found = composed.true_positive_rate(fpr)
        others = [
            math.exp(epsilon) * fpr + composed.delta(epsilon)
            for epsilon in np.linspace(-6.0, 6.0, 121)
        ]
        assert found <= min(1.0, *others) + 1e-12
        assert found >= fpr
