"""An attacker learns on some canaries, and is judged by others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from client.audit.attack import (
    Ranking,
    Rule,
    Sample,
    best_ranking,
    best_rule,
    distance,
    one_run_of,
    ratio,
)
from client.audit.bounds import Guesses


def sample(mu: float, size: int, seed: int = 0) -> Sample:
    """One score that tells something, and one that does not."""
    rng = np.random.default_rng(seed)
    present = np.arange(size) % 2 == 0
    told = rng.standard_normal(size) + mu * present
    return Sample(scores={"idle": rng.standard_normal(size), "told": told}, present=present)


@pytest.mark.parametrize("gain", [distance, ratio])
def test_the_rule_is_the_score_that_tells_something(gain: object) -> None:
    rule = best_rule(sample(1.5, 2000), gain, 0.95)  # pyright: ignore[reportArgumentType]
    assert rule.name == "told"
    rates = rule.rates(sample(1.5, 2000, seed=1), 0.95)
    assert rates.true_positive <= stats.norm.sf(rule.threshold - 1.5)
    assert rates.false_positive >= stats.norm.sf(rule.threshold)
    assert rates.mu > 0.9


def test_scores_that_tell_all_but_for_rounding_are_told_apart() -> None:
    present = np.arange(200) % 2 == 0
    scores = np.where(present, 1.0, 0.0) + 1e-9 * np.arange(200)
    both = Sample(scores={"exact": scores}, present=present)
    rates = best_rule(both, distance, 0.95).rates(both, 0.95)
    assert rates.true_positive > 0.95
    assert rates.false_positive < 0.05


def test_one_score_for_all_proves_nothing() -> None:
    same = Sample(scores={"same": np.zeros(40)}, present=np.arange(40) % 2 == 0)
    assert best_rule(same, distance, 0.95).rates(same, 0.95).mu == 0.0


def test_a_rule_counts() -> None:
    four = Sample(scores={"s": np.array([3.0, 2.0, 1.0, 0.0])}, present=np.array([1, 0, 1, 0]) > 0)
    rates = Rule(name="s", threshold=1.5).rates(four, 0.9)
    # one of two is found, one of two is taken for one who is there
    assert rates.true_positive == pytest.approx(stats.beta.ppf(0.05, 1, 2))
    assert rates.false_positive == pytest.approx(stats.beta.ppf(0.95, 2, 1))


def test_a_ranking_guesses_at_both_ends() -> None:
    scores = np.arange(10.0)
    present = scores >= 6
    ten = Sample(scores={"s": scores}, present=present)
    ranking = Ranking(name="s", highest=0.5, lowest=0.2)
    assert ranking.guesses(ten) == Guesses(num_canaries=10, made=7, right=6)
    none = Ranking(name="s", highest=0.0, lowest=0.2)
    assert none.guesses(ten) == Guesses(num_canaries=10, made=2, right=2)


def test_the_ranking_that_proves_most_is_of_the_score_that_tells_something() -> None:
    ranking = best_ranking(sample(2.0, 1000), 1e-5, 0.95)
    assert ranking.name == "told"
    assert one_run_of(ranking, sample(2.0, 1000, seed=1), 1e-5, 0.95) > 1


def test_a_fourth_teaches_and_pairs_stay_together() -> None:
    first, rest = sample(1.0, 80).divided()
    assert len(first.present) == 20
    assert len(rest.present) == 60
    assert first.present.sum() == 10
    assert rest.present.sum() == 30
    whole = Sample.joined([first, rest])
    assert sorted(whole.scores["told"]) == sorted(sample(1.0, 80).scores["told"])
