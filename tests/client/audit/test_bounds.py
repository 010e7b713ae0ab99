"""Bounds against what is known exactly, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from client.audit.bounds import Guesses, Rates, from_rates, gaussian, one_run, sampled_gaussian
from common.privacy.accountants import PldAccountant
from common.privacy.events import GaussianRelease, PoissonGaussianSteps

DELTA = 1e-5
STEPS = [
    PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=2.0, steps=40),
    PoissonGaussianSteps(sampling_rate=1.0, noise_multiplier=6.0, steps=10),
    PoissonGaussianSteps(sampling_rate=0.05, noise_multiplier=0.9, steps=100),
]


@pytest.mark.parametrize("event", STEPS, ids=repr)
def test_the_best_attack_proves_the_claim_where_the_mechanism_is_known(
    event: PoissonGaussianSteps,
) -> None:
    fpr = 0.05
    best = Rates(
        true_positive=PldAccountant().true_positive_rate_bound([event], fpr), false_positive=fpr
    )
    claim = PldAccountant().epsilon([event], DELTA)
    found = sampled_gaussian(best, DELTA, sampling_rate=event.sampling_rate, steps=event.steps)
    assert claim * 0.98 < found <= claim * 1.001
    assert 0 < from_rates(best, DELTA) < claim


def test_the_gaussian_bound_is_exact_for_one_gaussian() -> None:
    mu = 0.8
    rates = Rates(true_positive=float(stats.norm.cdf(mu - 1)), false_positive=stats.norm.cdf(-1))
    assert rates.mu == pytest.approx(mu)
    claim = PldAccountant().epsilon([GaussianRelease(noise_multiplier=1 / mu)], DELTA)
    assert gaussian(rates, DELTA) == pytest.approx(claim)


@given(fpr=st.floats(1e-4, 0.999), worse=st.floats(0, 1))
def test_a_blind_guess_proves_nothing(fpr: float, worse: float) -> None:
    rates = Rates(true_positive=fpr * worse, false_positive=fpr)
    assert from_rates(rates, 0.0) == 0.0 or worse < 1
    assert gaussian(rates, DELTA) == 0.0
    assert sampled_gaussian(rates, DELTA, sampling_rate=0.25, steps=40) == 0.0


def test_where_no_noise_explains_an_attack_sampling_hides_nobody() -> None:
    # drawn in 3 % of all runs, and found in 90 %
    rates = Rates(true_positive=0.9, false_positive=0.01)
    found = sampled_gaussian(rates, DELTA, sampling_rate=0.01, steps=3)
    assert found == gaussian(rates, DELTA) > 10


@pytest.mark.parametrize("wanted", [0.9, 0.95, 0.99])
def test_rates_hold_as_often_as_they_say(wanted: float) -> None:
    rng = np.random.default_rng(0)
    hits, mistakes, size, repeats = 0.3, 0.1, 80, 500
    holds = 0
    for found, mistaken in zip(
        rng.binomial(size, hits, repeats), rng.binomial(size, mistakes, repeats), strict=True
    ):
        rates = Rates.of(int(found), size, int(mistaken), size, confidence=wanted)
        holds += rates.true_positive <= hits and rates.false_positive >= mistakes
    assert holds >= stats.binom.ppf(1e-4, repeats, wanted)


@pytest.mark.parametrize(("canaries", "expected"), [(10, 1.0), (100, 3.5), (1000, 5.8)])
def test_the_most_that_one_run_can_prove(canaries: int, expected: float) -> None:
    """Figures of the project's own earlier measurements (95 %, delta 1e-5)."""
    all_right = Guesses(num_canaries=canaries, made=canaries, right=canaries)
    assert one_run(all_right, DELTA, confidence=0.95) == pytest.approx(expected, abs=0.06)


@settings(deadline=None)
@given(made=st.integers(1, 400), share=st.floats(0, 1), confidence=st.floats(0.6, 0.99))
def test_one_run_without_delta_is_a_binomial_tail(
    made: int, share: float, confidence: float
) -> None:
    right = round(share * made)
    guesses = Guesses(num_canaries=made, made=made, right=right)
    found = one_run(guesses, 0.0, confidence=confidence)
    if right:
        # Clopper and Pearson's lower end, by another road
        low = stats.beta.ppf(1 - confidence, right, made - right + 1)
        expected = max(0.0, math.log(low / (1 - low)) if 0 < low < 1 else 0.0)
        assert found == pytest.approx(expected, abs=1e-3)
    else:
        assert found == 0.0


def test_delta_costs_more_the_more_canaries_there_are() -> None:
    few, many = (Guesses(num_canaries=n, made=50, right=48) for n in (50, 100_000))
    assert one_run(many, DELTA, confidence=0.95) < one_run(few, DELTA, confidence=0.95) - 0.1


def test_one_run_holds_for_randomised_response() -> None:
    """The mechanism that the bound is tight for: an answer is right with exp(e) / (1 + exp(e))."""
    epsilon, size, repeats = 1.5, 200, 300
    rng = np.random.default_rng(1)
    right = rng.binomial(size, 1 / (1 + math.exp(-epsilon)), repeats)
    above = sum(
        one_run(Guesses(num_canaries=size, made=size, right=int(v)), 0.0, confidence=0.9) > epsilon
        for v in right
    )
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], repeats, 0.1)
    assert low / 2 < above <= high
