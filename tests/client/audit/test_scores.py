"""Scores against densities written out, and against the faults that they are for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from client.audit import scores
from client.audit.game import Play
from client.audit.scores import Claimed

RNG = np.random.default_rng(0)
SEEN = RNG.normal(0.2, 1.3, (5, 4, 5))  # five canaries, four rounds of five steps


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.4, 2.0])
def test_the_likelihood_is_that_of_sampled_noise(rate: float, sigma: float) -> None:
    density = stats.norm(scale=sigma).pdf
    ratio = (1 - rate) + rate * density(SEEN - 1) / density(SEEN)
    found = scores.likelihood(SEEN, Claimed(sampling_rate=rate, noise_multiplier=sigma))
    assert found == pytest.approx(np.log(ratio).sum((1, 2)))


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.0])
def test_an_opponent_is_drawn_as_everybody(rate: float) -> None:
    density = stats.norm(scale=1.5).pdf
    absent = (1 - rate) * density(SEEN) + rate * density(SEEN + 1)
    drawn = (1 - rate) * density(SEEN - 1) + rate * density(SEEN)
    expected = np.log(((1 - rate) * absent + rate * drawn) / absent).sum((1, 2))
    claimed = Claimed(sampling_rate=rate, noise_multiplier=1.5, opposed=True)
    assert scores.likelihood(SEEN, claimed) == pytest.approx(expected)


def test_far_outliers_overflow_nothing() -> None:
    far = np.array([[[1e6]], [[-1e6]]])
    found = scores.likelihood(far, Claimed(sampling_rate=0.25, noise_multiplier=1.0))
    assert np.isfinite(found).all()
    assert found[0] > 0 > found[1]


def test_noise_that_returns_leaves_canaries_alone() -> None:
    noise = np.broadcast_to(RNG.standard_normal((2, 1, 5)), (2, 4, 5)).copy()
    noise[1] += RNG.random((4, 5)) < 0.25
    absent, present = scores.spread(noise)
    assert absent == pytest.approx(0, abs=1e-20)
    assert present > 0.1


def test_noise_that_two_sites_share_cancels() -> None:
    noise = RNG.standard_normal((2, 4, 5))
    drawn = np.zeros_like(noise)
    drawn[1, 0, 0] = drawn[1, 2, 3] = 1
    assert scores.differing(noise + drawn, noise) == pytest.approx([0, 2])


def test_who_comes_at_every_fifth_step_is_found_wherever_it_begins() -> None:
    claimed = Claimed(sampling_rate=0.2, noise_multiplier=1.0)
    seen = np.zeros((3, 4, 5))
    seen[0, :, 0] = seen[1, :, 3] = 1
    first, other, absent = scores.orderly(seen, 5, claimed)
    assert first == pytest.approx(other)
    assert first > absent + 2


def test_each_score_has_a_name() -> None:
    claimed = Claimed(sampling_rate=0.25, noise_multiplier=1.0)
    one = Play(present=np.ones(5, dtype=bool), seen=SEEN, elsewhere=SEEN, claim={})
    names = {"likelihood", "spread over rounds", "order of 4", "order of 5", "other site"}
    assert set(scores.of_play(one, claimed)) == names
    everyone = Claimed(sampling_rate=1.0, noise_multiplier=1.0)
    assert set(scores.of_seen(SEEN[:, :1, :1], everyone)) == {"likelihood"}
