"""Sound training stays below its claim, and not far below."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from client.audit.attack import Gain, Sample, best_ranking, best_rule, distance, ratio
from client.audit.audit import Effort, Evidence, conclude, gather
from client.audit.bounds import Rates, from_rates, rules_out
from client.audit.game import Subject
from client.audit.strength import passes
from common.messages import Recipe
from common.privacy import accountants
from common.privacy.accountants import PldAccountant
from common.privacy.calibration import calibrate
from common.privacy.events import PoissonGaussianSteps

SHORT = Effort(num_canaries=400, num_ordinary=8, num_runs=4, num_lone_runs=100)
REPEATS = 30


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def noise_for(epsilon: float, rate: float, steps: int) -> float:
    return calibrate(
        epsilon=epsilon,
        delta=1e-5,
        sampling_rate=rate,
        steps=steps,
        accountant=accountants.build("pld"),
    )


def subject(epsilon: float, *, rate: float = 0.25, rounds: int = 4, steps: int = 5) -> Subject:
    noise = noise_for(epsilon, rate, rounds * steps)
    recipe = Recipe(
        mechanism="dp_sgd",
        unit="patient",
        accountant="pld",
        delta=1e-5,
        sampling_rate=rate,
        noise_multiplier=noise,
        steps=steps,
        max_grad_norm=2.0,
        images_per_patient=1,
        optimizer="sgd",
        learning_rate=0.1,
        physical_batch=64,
    )
    return Subject(recipe=recipe, rounds=rounds, model=None)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_bound_is_below_the_claim_and_not_vacuous(rate: float) -> None:
    found = conclude(gather(subject(4, rate=rate), effort=SHORT, seed=3), confidence=0.95)
    assert 3.9 < found.epsilon_claimed <= 4
    assert 0.5 < found.epsilon_lower_bound < found.epsilon_claimed
    assert not found.passes_claim


def shuffled(sample: Sample, rng: np.random.Generator) -> Sample:
    return replace(sample, present=rng.permutation(sample.present))


def test_an_attacker_who_is_told_nothing_proves_nothing() -> None:
    evidence = gather(subject(10), effort=SHORT, seed=3)
    rng = np.random.default_rng(0)
    blind = replace(
        evidence,
        crowded=tuple(shuffled(sample, rng) for sample in evidence.crowded),
        lone=tuple(shuffled(sample, rng) for sample in evidence.lone),
    )
    assert conclude(evidence, confidence=0.95).epsilon_lower_bound > 3
    assert conclude(blind, confidence=0.95).epsilon_lower_bound < 0.2


def test_the_same_seed_gives_the_same_audit() -> None:
    effort = Effort(num_canaries=40, num_ordinary=2, num_runs=2, num_lone_runs=16)
    first, again, other = (gather(subject(4), effort=effort, seed=seed) for seed in (1, 1, 2))
    assert conclude(first, confidence=0.95) == replace(
        conclude(again, confidence=0.95), claim=conclude(first, confidence=0.95).claim
    )
    scores = [one.crowded[0].scores["likelihood"] for one in (first, again, other)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("few", ["num_canaries", "num_runs", "num_lone_runs", "num_ordinary"])
def test_too_little_effort_is_refused(few: str) -> None:
    with pytest.raises(ValueError, match=few):
        replace(SHORT, **{few: 0})


def refutes(evidence: Evidence, epsilon: float, confidence: float) -> bool:
    """Whether an audit proves more than ``epsilon``, without computing how much it proves."""
    each = 1 - (1 - confidence) / 4
    recipe, steps = evidence.subject.recipe, evidence.subject.steps
    event = PoissonGaussianSteps(
        sampling_rate=recipe.sampling_rate,
        noise_multiplier=noise_for(epsilon, recipe.sampling_rate, steps),
        steps=steps,
    )

    def allowed(fpr: float) -> float:
        return PldAccountant().true_positive_rate_bound([event], fpr)

    def rates(samples: tuple[Sample, Sample], gain: Gain) -> Rates:
        learnt, judged = samples
        return best_rule(learnt, gain, each).rates(judged, each)

    learnt, judged = evidence.crowded
    guesses = best_ranking(learnt, recipe.delta, each).guesses(judged)
    return (
        rules_out(guesses, epsilon, recipe.delta, confidence=each)
        or passes(rates(evidence.crowded, distance), allowed)
        or passes(rates(evidence.lone, distance), allowed)
        or from_rates(rates(evidence.lone, ratio), recipe.delta) > epsilon
    )


@pytest.mark.long
@pytest.mark.parametrize("rate", [0.25, 1.0])
@pytest.mark.parametrize("epsilon", [1, 4, 10])
def test_bounds_pass_a_true_claim_as_rarely_as_they_say(epsilon: float, rate: float) -> None:
    """With 60 % confidence as well: there, a bound that is wrong is seen sooner."""
    effort = replace(SHORT, num_canaries=600, num_runs=2, num_lone_runs=24)
    evidence = [
        gather(subject(epsilon, rate=rate, rounds=2), effort=effort, seed=100 + number)
        for number in range(REPEATS)
    ]
    counts = {
        confidence: sum(refutes(one, epsilon, confidence) for one in evidence)
        for confidence in (0.95, 0.6)
    }
    num_proved = sum(refutes(one, 0.5, 0.95) for one in evidence)
    print(f"epsilon {epsilon}, rate {rate}: above {counts}, 0.5 proved {num_proved} of {REPEATS}")
    for confidence, count in counts.items():
        most = int(stats.binom.ppf(0.999, REPEATS, 1 - confidence))
        assert count <= most, (confidence, count)
    if epsilon >= 4:
        assert num_proved > REPEATS / 2
    for one in evidence[:2]:  # what an audit says is what was counted
        found = conclude(one, confidence=0.95)
        assert found.passes_claim == refutes(one, epsilon, 0.95)
        assert (found.epsilon_lower_bound > 0.5) == refutes(one, 0.5, 0.95)
