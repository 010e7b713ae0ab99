"""Which sites a round asks: uniform, the same after every restart, never more than planned."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.config import Config, FederationConfig, StrategyConfig, Trust
from common.errors import UsageError
from common.privacy import accountants
from common.privacy.events import PoissonGaussianSteps
from server.recipe import most_steps, plan
from server.schedule import Schedule

NAMES = tuple(f"site-{number}" for number in range(1, 13))


def schedule(num_sites: int, count: int | None, *, rounds: int = 10, seed: int = 1) -> Schedule:
    return Schedule(seed=seed, num_sites=num_sites, sites_per_round=count, rounds=rounds)


@given(st.integers(1, 12), st.data(), st.integers(0, 2**40))
def test_a_round_asks_so_many_whoever_asks_in_whatever_order(
    num_sites: int, data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(1, num_sites))
    names = NAMES[:num_sites]
    found = schedule(num_sites, count, seed=seed)
    for number in (1, 2, 9):
        asked = found.asked(number, names)
        assert len(asked) == count
        assert asked <= set(names)
        assert asked == schedule(num_sites, count, seed=seed).asked(number, names[::-1])


@given(st.integers(1, 12), st.data(), st.integers(1, 20))
def test_the_site_asked_most_often_is_what_is_planned_for(
    num_sites: int, data: st.DataObject, rounds: int
) -> None:
    count = data.draw(st.none() | st.integers(1, num_sites))
    found = schedule(num_sites, count, rounds=rounds)
    names = NAMES[:num_sites]
    asked = Counter(n for number in range(1, rounds + 1) for n in found.asked(number, names))
    assert found.most_rounds == max(asked.values())
    for name in names:
        own = found.rounds_of(name, names)
        assert len(own) == asked[name]
        assert all(name in found.asked(number, names) for number in own)


@pytest.mark.parametrize(("over", "accepted"), [("all", True), ("a group too rare", False)])
def test_every_group_of_sites_is_as_likely(over: str, accepted: bool) -> None:
    """Two-sided: draws that always leave out a group are told apart."""
    found = schedule(5, 2, rounds=4000)
    names = NAMES[:5]
    groups = Counter(tuple(sorted(found.asked(n, names))) for n in range(1, 4001))
    if not accepted:
        groups[groups.most_common(1)[0][0]] //= 2
    counts = [groups[pair] for pair in combinations(sorted(names), 2)]
    assert bool(chisquare(counts).pvalue > 1e-4) is accepted


def test_rounds_and_seeds_are_drawn_apart() -> None:
    names = NAMES
    rounds = {tuple(sorted(schedule(12, 3).asked(n, names))) for n in range(1, 30)}
    seeds = {tuple(sorted(schedule(12, 3, seed=s).asked(1, names))) for s in range(30)}
    assert len(rounds) > 20
    assert len(seeds) > 20


def test_other_sites_than_planned_for_are_refused() -> None:
    with pytest.raises(UsageError, match=r"sites_per_round=2: drawn from 5 sites, and there are 4"):
        schedule(5, 2).asked(1, NAMES[:4])
    assert schedule(5, None).asked(1, NAMES[:4]) == set(NAMES[:4])


def test_the_noise_lasts_for_the_site_that_is_asked_most_often() -> None:
    config = Config(
        seed=3,
        federation=FederationConfig(num_sites=12, sites_per_round=3, rounds=20),
        strategy=StrategyConfig(local_steps_after=7),
    )
    recipe = plan(config, num_patients=600)
    target = config.privacy.epsilon_target
    assert target is not None

    def epsilon(steps: int) -> float:
        event = PoissonGaussianSteps(
            sampling_rate=recipe.sampling_rate,
            noise_multiplier=recipe.noise_multiplier,
            steps=steps,
        )
        return accountants.build(recipe.accountant).epsilon([event], recipe.delta)

    steps = most_steps(config)
    assert steps == 5 * Schedule.of(config).most_rounds + 7 < 5 * 20 + 7
    assert 0.99 * target <= epsilon(steps) <= target < epsilon(steps + 5)
    everyone = replace(config, federation=replace(config.federation, sites_per_round=None))
    assert plan(everyone, num_patients=600).noise_multiplier > recipe.noise_multiplier


@pytest.mark.parametrize(
    ("federation", "words"),
    [
        ({"sites_per_round": 0}, "sites_per_round=0: from federation.min_sites=1 to the 3"),
        ({"sites_per_round": 4}, "sites_per_round=4: from federation.min_sites=1 to the 3"),
        ({"sites_per_round": 2, "min_sites": 3}, "sites_per_round=2: from .*min_sites=3"),
    ],
)
def test_what_cannot_be_is_refused(federation: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FederationConfig(**federation)


def test_secure_sums_are_of_all_sites() -> None:
    federation = FederationConfig(
        trust=Trust.secure_aggregation, steps_per_round=1, sites_per_round=2
    )
    with pytest.raises(UsageError, match=r"does not do federation\.sites_per_round=2"):
        Config(federation=federation)
