"""Figures of attacks whose true strength is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from client.audit.bounds import Rates
from client.audit.membership import Floats
from client.audit.strength import LEAST_PATIENTS, TradeOff, measure, passes, prove
from common.metrics import auroc
from common.privacy.accountants import PldAccountant
from common.privacy.events import GaussianRelease

MEMBERS, OTHERS = 150, 300
MEMBER = np.arange(MEMBERS + OTHERS) < MEMBERS


def scores(seed: int, distance: float) -> Floats:
    """Normal, members' ``distance`` higher: AUC = Phi(distance / sqrt 2)."""
    return np.random.default_rng(seed).normal(size=len(MEMBER)) + distance * MEMBER


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.5])
def test_intervals_hold_the_truth_as_often_as_they_say(distance: float) -> None:
    audits = [measure(scores(seed, distance), MEMBER, seed=seed) for seed in range(40)]
    auc = stats.norm.cdf(distance / math.sqrt(2))
    held = [one.interval[0] <= auc <= one.interval[1] for one in audits]
    # binomial of 40 at 0.95: 33 or fewer in one of 500
    assert sum(held) >= 34
    rate = stats.norm.sf(stats.norm.isf(0.01) - distance)
    found = [one.found[0] for one in audits]
    assert sum(one.interval[0] <= rate <= one.interval[1] for one in found) >= 34
    # as a mean, within four standard errors: the figure itself is not off to one side
    assert abs(np.mean([one.auc for one in audits]) - auc) < 4 * 0.03 / math.sqrt(40)


def test_chance_is_called_chance_and_leaks_are_not() -> None:
    at_chance = [measure(scores(seed, 0.0), MEMBER, seed=seed).above_chance for seed in range(40)]
    assert sum(at_chance) <= 4  # one side of a 95 % interval
    assert all(measure(scores(seed, 0.8), MEMBER, seed=seed).above_chance for seed in range(10))


def test_known_rates() -> None:
    """Of 300 others three are allowed at 1 %, none at 0.1 %."""
    values = np.concatenate([np.linspace(1.5, 151.5, MEMBERS), np.arange(OTHERS) - 200.0])
    # others go up to 99, the fourth highest is 96
    one, most_strict = measure(values, MEMBER, seed=0).found
    inside = values[MEMBER]
    assert one.tpr == (inside > 96).mean()
    assert most_strict.tpr == (inside > 99).mean()
    assert (one.false_positives, most_strict.false_positives) == (3, 0)
    assert one.interval[0] < one.tpr < one.interval[1]


def test_a_rate_of_zero_has_an_interval() -> None:
    found = measure(scores(0, -9.0), MEMBER, seed=0).found[1]
    assert found.tpr == 0.0
    assert found.interval == pytest.approx((0.0, 1 - 0.025 ** (1 / MEMBERS)))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=40))
def test_the_area_is_that_of_the_metric(rows: list[tuple[int, bool]]) -> None:
    values = np.array([value for value, _ in rows], dtype=float)
    member = np.array([inside for _, inside in rows])
    assume(2 <= member.sum() <= len(rows) - 2)
    assert measure(values, member, seed=0).auc == pytest.approx(auroc(member, values))


def test_equal_scores_are_on_one_side() -> None:
    found = measure(np.zeros(len(MEMBER)), MEMBER, seed=0)
    assert found.auc == 0.5
    assert [one.tpr for one in found.found] == [0.0, 0.0]


def everything(fpr: float) -> float:
    return 1.0


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    proof = prove(
        {"x": scores(0, 50.0)}, MEMBER, delta=1e-5, allowed=everything, confidence=0.95, seed=0
    )
    # the judging half: 75 of 75 members found, none of 150 others, each rate with half the error
    found, mistaken = 0.025 ** (1 / 75), 1 - 0.025 ** (1 / 150)
    assert proof.rates.true_positive == pytest.approx(found)
    assert proof.rates.false_positive == pytest.approx(mistaken)
    upper = math.log((found - 1e-5) / mistaken)
    lower = math.log((1 - mistaken - 1e-5) / (1 - found))
    assert proof.epsilon == pytest.approx(max(upper, lower))
    assert not proof.passes_claim


def test_the_better_attack_is_chosen() -> None:
    chosen = prove(
        {"guessing": scores(0, 0.0), "knowing": scores(1, 3.0)},
        MEMBER,
        delta=1e-5,
        allowed=everything,
        confidence=0.95,
        seed=0,
    )
    assert chosen.attack == "knowing"
    assert chosen.epsilon > 1


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 2.0])
def test_a_true_claim_is_rarely_passed_and_a_false_one_often(epsilon: float) -> None:
    """Scores of two values, whose ratio of probabilities is e^epsilon: no better attack exists."""
    share = 1 / (1 + math.exp(epsilon))
    true = [
        _response(seed, share, lambda fpr: min(1.0, math.exp(epsilon) * fpr)) for seed in range(100)
    ]
    # binomial of 100 at 0.05: more than 12 in one of 500
    assert sum(bound > epsilon for bound, _ in true) <= 12
    assert sum(passed for _, passed in true) <= 12
    if epsilon == 2.0:
        false = [
            _response(seed, share, lambda fpr: min(1.0, math.exp(0.2) * fpr)) for seed in range(20)
        ]
        assert sum(passed for _, passed in false) >= 18


def _response(seed: int, share: float, allowed: TradeOff) -> tuple[float, bool]:
    rng = np.random.default_rng(seed)
    said = (rng.random(len(MEMBER)) < np.where(MEMBER, 1 - share, share)).astype(float)
    proof = prove({"x": said}, MEMBER, delta=0.0, allowed=allowed, confidence=0.95, seed=seed)
    return proof.epsilon, proof.passes_claim


def test_the_answer_that_leaves_knows_both_directions() -> None:
    claim = [GaussianRelease(noise_multiplier=1.0)]  # tells two normals one apart

    def allowed(fpr: float) -> float:
        return PldAccountant().true_positive_rate_bound(claim, fpr)

    assert allowed(0.1) == pytest.approx(stats.norm.sf(stats.norm.isf(0.1) - 1), abs=0.01)
    assert not passes(Rates(true_positive=0.36, false_positive=0.1), allowed)
    assert passes(Rates(true_positive=0.45, false_positive=0.1), allowed)
    # let go rightly: 95 % of others while 1 - 0.999 of members are missed
    assert passes(Rates(true_positive=0.999, false_positive=0.9), allowed)
    assert not passes(Rates(true_positive=0.0, false_positive=1.0), allowed)
    # a claim about one direction alone: three times as many members as others, and so for others
    lopsided = Rates(true_positive=0.9, false_positive=0.5)
    assert passes(lopsided, lambda fpr: min(1.0, 3 * fpr))  # half are let go, and 1 in 10 missed
    assert not passes(lopsided, lambda fpr: min(1.0, 6 * fpr))


def test_too_few_patients_are_refused() -> None:
    few = np.arange(2 * LEAST_PATIENTS) < LEAST_PATIENTS - 1
    values = np.arange(len(few), dtype=float)
    with pytest.raises(ValueError, match="at least 8"):
        prove({"x": values}, few, delta=1e-5, allowed=everything, confidence=0.95, seed=0)
    with pytest.raises(ValueError, match="at least 2"):
        measure(np.array([0.0, 1.0, 2.0]), np.array([True, False, False]), seed=0)
