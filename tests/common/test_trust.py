"""Settings of secure sums: what they cannot do is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.config import (
    Config,
    FederationConfig,
    Job,
    LateReplies,
    Mechanism,
    Personal,
    PrivacyConfig,
    SiteDpConfig,
    StrategyConfig,
    StrategyName,
    TrainingConfig,
    Trust,
    Weighting,
)
from common.errors import UsageError


def _federation(**changes: Any) -> FederationConfig:
    values = {"num_sites": 5, "trust": Trust.secure_aggregation, "steps_per_round": 1, **changes}
    return FederationConfig(**values)


def _config(**changes: Any) -> Config:
    values = {
        "federation": _federation(),
        "training": TrainingConfig(optimizer="sgd"),
        **changes,
    }
    return Config(**values)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_strategies_that_need_only_sums_are_taken(name: str) -> None:
    assert _config(strategy=StrategyConfig(name=StrategyName(name)))


@pytest.mark.parametrize("name", ["fedprox", "fedmedian", "trimmed_mean", "krum", "scaffold"])
def test_others_are_refused_by_name(name: str) -> None:
    more = {"training": TrainingConfig(optimizer="sgd", momentum=0.0)}
    federation = _federation(min_sites=3)
    strategy = StrategyConfig(name=StrategyName(name))
    with pytest.raises(UsageError, match=name):
        _config(strategy=strategy, federation=federation, **more)


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("weighting", {"strategy": StrategyConfig(weighting=Weighting.equal)}),
        ("site_dp", {"strategy": StrategyConfig(site_dp=SiteDpConfig(noise_multiplier=1.0))}),
        ("personal", {"strategy": StrategyConfig(personal=Personal.head)}),
        ("local_steps_after", {"strategy": StrategyConfig(local_steps_after=2)}),
        ("steps_per_round=5", {"federation": _federation(steps_per_round=5)}),
        ("late_replies", {"federation": _federation(late_replies=LateReplies.use)}),
        ("privacy=none", {"privacy": PrivacyConfig(mechanism=Mechanism.none)}),
        ("optimizer", {"training": TrainingConfig(optimizer="adam")}),
        ("generator", {"job": Job.synthesize}),
    ],
)
def test_what_a_sum_cannot_hold_is_refused(word: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=word):
        _config(**changes)


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("max_dropouts", {"max_dropouts": 3}),
        ("max_dropouts", {"max_dropouts": -1}),
        ("max_colluders", {"max_colluders": 5}),
        ("2 or more", {"num_sites": 1}),
    ],
)
def test_failures_that_cannot_be_borne_are_refused(word: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=word):
        _federation(**changes)


def test_local_trust_knows_no_missing_or_colluding_sites() -> None:
    assert FederationConfig().trust is Trust.local
    for name in ("max_dropouts", "max_colluders"):
        with pytest.raises(UsageError, match="secure_aggregation"):
            FederationConfig(**{name: 1})


def test_the_parties_are_the_approved_sites() -> None:
    federation = _federation(sites=["a", "b", "c"], max_colluders=1)
    assert (federation.parties.num_sites, federation.parties.num_shares) == (3, 2)
    assert replace(federation, sites=[]).parties.num_sites == 5
