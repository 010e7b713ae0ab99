"""PRV: the papers' figures, and never below what PLD proves nearly tight."""

from __future__ import annotations

import math

import pytest

from client.prv import PrvAccountant
from common.privacy.accountants import build
from common.privacy.events import GaussianRelease, NonPrivateRelease, PoissonGaussianSteps


def steps(rate: float, noise: float, count: int) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=count)


@pytest.mark.parametrize(
    ("event", "delta", "figure"),
    [
        (steps(64 / 2000, 1.0, 625), 2000**-1.1, 4.100),
        (steps(64 / 2000, 1.0, 1), 1e-5, 0.712),
        (steps(1024 / 5000, 8.0, 200), 1e-5, 1.427),
        (steps(64 / 600, 1.2, 200), 1e-4, 6.694),
    ],
)
def test_published_runs(event: PoissonGaussianSteps, delta: float, figure: float):
    epsilon = PrvAccountant().epsilon([event], delta)
    assert epsilon == pytest.approx(figure, abs=0.006)
    assert build("pld").epsilon([event], delta) <= epsilon <= build("rdp").epsilon([event], delta)


def test_rounds_of_different_noise_compose():
    both = [steps(0.1, 1.0, 50), steps(0.2, 2.0, 50)]
    epsilon = PrvAccountant().epsilon(both, 1e-5)
    assert epsilon == pytest.approx(build("pld").epsilon(both, 1e-5), abs=0.03)
    assert epsilon > max(PrvAccountant().epsilon([one], 1e-5) for one in both)


def test_equal_rounds_are_one_long_round():
    rounds = [steps(0.1, 1.0, 10)] * 5
    assert PrvAccountant().epsilon(rounds, 1e-5) == PrvAccountant().epsilon(
        [steps(0.1, 1.0, 50)], 1e-5
    )


def test_corners():
    assert PrvAccountant().epsilon([], 1e-5) == 0.0
    assert PrvAccountant().epsilon([NonPrivateRelease(reason="test")], 1e-5) == math.inf
    assert PrvAccountant().epsilon([steps(0.1, 0.0, 1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    ("events", "delta", "says"),
    [
        ([steps(1.0, 1.0, 1)], 1e-5, "rate below 1"),
        ([GaussianRelease(noise_multiplier=1.0)], 1e-5, "GaussianRelease"),
        ([steps(0.1, 1.0, 1)], 1e-14, "delta"),
        ([steps(0.5, 0.2, 1000)], 1e-5, "use pld"),
    ],
)
def test_what_it_cannot_bound_is_refused(events, delta: float, says: str):
    with pytest.raises(ValueError, match=says):
        PrvAccountant().epsilon(events, delta)
