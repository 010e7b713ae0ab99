"""Rounds that ask some of the sites."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common.config import LateReplies, PrivacyConfig, StrategyConfig, StrategyName, TrainingConfig
from common.errors import RunFailed
from common.messages import Reason, Status, TrainReply, TrainRequest
from common.privacy.accountants import build
from common.privacy.events import PoissonGaussianSteps
from server.checkpoint import latest_checkpoint
from server.end_state import EndState
from server.schedule import Schedule
from server.spend import SpendTracker

SIX = tuple(f"site-{number}" for number in range(1, 7))
TWO = {"sites_per_round": 2}


def task(town: Any, folder: Path, **more: Any) -> Any:
    federation = {**TWO, **more.pop("federation", {})}
    return town.Run(folder, num_sites=6, federation=federation, **{"rounds": 8, **more})


def drawn(run: Any) -> list[list[str]]:
    schedule = Schedule.of(run.start().config)
    return [sorted(schedule.asked(number, SIX)) for number in range(1, run.rounds + 1)]


def test_only_the_sites_drawn_train_and_are_recorded(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name) for name in SIX]
    run = task(town, tmp_path)
    outcome = run.on(town.network(*hospitals))
    assert outcome.state is EndState.completed
    expected = drawn(run)
    assert len({tuple(names) for names in expected}) > 3
    assert [sorted(record["sites"]) for record in outcome.checkpoint.history] == expected
    for hospital in hospitals:
        asked = [number for number, names in enumerate(expected, 1) if hospital.name in names]
        assert [request.round for request in hospital.requests] == asked
    told = [event["sites"] for event in run.events if event["event"] == "asked"]
    assert told == expected


def test_all_sites_in_each_round_is_the_run_without_sampling(town: Any, tmp_path: Path) -> None:
    everyone = [town.Hospital(name=name) for name in SIX]
    whole = task(town, tmp_path / "all", federation={"sites_per_round": None}).on(
        town.network(*everyone)
    )
    same = task(town, tmp_path / "six", federation={"sites_per_round": 6}).on(
        town.network(*(town.Hospital(name=name) for name in SIX))
    )
    some = task(town, tmp_path / "some").on(
        town.network(*(town.Hospital(name=name) for name in SIX))
    )
    assert town.digest(same.checkpoint.weights) == town.digest(whole.checkpoint.weights)
    assert town.timeless(same) == town.timeless(whole)
    assert town.digest(some.checkpoint.weights) != town.digest(whole.checkpoint.weights)


@pytest.mark.parametrize("name", [StrategyName.fedavg, StrategyName.fedadam, StrategyName.scaffold])
@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_resumed_run_asks_the_same_sites_and_ends_with_the_same_bits(
    town: Any, tmp_path: Path, name: StrategyName, after: int
) -> None:
    config = {"strategy": StrategyConfig(name=name)}

    def hospitals() -> list[Any]:
        return [town.Hospital(name=n, max_rounds=3 if n == "site-2" else 99) for n in SIX]

    whole = task(town, tmp_path / "whole", config=config).on(town.network(*hospitals()))

    def cut(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == after:
            raise town.PowerCut

    with pytest.raises(town.PowerCut):
        task(town, tmp_path, config=config, observe=cut).on(town.network(*hospitals()))
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    resumed = task(town, tmp_path, config=config, checkpoint=kept).on(town.network(*hospitals()))
    assert town.timeless(resumed) == town.timeless(whole)
    assert town.digest(resumed.checkpoint.weights) == town.digest(whole.checkpoint.weights)


def test_a_site_that_left_is_drawn_and_not_asked(town: Any, tmp_path: Path) -> None:
    """Nobody stands in for it: the others were promised no more rounds than planned."""
    hospitals = [town.Hospital(name=n, max_rounds=0 if n == "site-2" else 99) for n in SIX]
    run = task(town, tmp_path)
    outcome = run.on(town.network(*hospitals))
    expected = drawn(run)
    rounds = [number for number, names in enumerate(expected, 1) if "site-2" in names]
    assert len(rounds) > 1
    assert [request.round for request in hospitals[1].requests] == rounds[:1]
    assert outcome.state is EndState.completed_with_missing_sites
    for record, names in zip(outcome.checkpoint.history, expected, strict=True):
        left = {"site-2"} if record["round"] >= rounds[0] else set()
        assert set(record["sites"]) == set(names) | left
    for hospital in (*hospitals[:1], *hospitals[2:]):
        asked = [number for number, names in enumerate(expected, 1) if hospital.name in names]
        assert [request.round for request in hospital.requests] == asked


def test_a_round_whose_sites_have_left_asks_nobody_and_the_run_goes_on(
    town: Any, tmp_path: Path
) -> None:
    run = task(town, tmp_path, federation={"min_sites": 2, "wait_seconds": 30.0}, rounds=8)
    expected = drawn(run)
    gone = expected[0][0]
    hospitals = [town.Hospital(name=n, max_rounds=0 if n == gone else 99) for n in SIX]
    outcome = run.on(town.network(*hospitals))
    for record, names in zip(outcome.checkpoint.history, expected, strict=True):
        assert record["aggregated"] == (gone not in names)
    for hospital in hospitals:
        asked = [n for n, names in enumerate(expected, 1) if hospital.name in names]
        spared = [n for n in asked if gone in expected[n - 1] and n > 1]
        assert [r.round for r in hospital.requests] == [n for n in asked if n not in spared]
    assert any(gone in names for names in expected[1:])
    assert outcome.state is EndState.completed_with_missing_sites


def test_a_quorum_is_of_the_sites_that_were_drawn(town: Any, tmp_path: Path) -> None:
    """A third of all patients is never in one round here; of its own sites all are."""
    hospitals = [town.Hospital(name=name) for name in SIX]
    outcome = task(town, tmp_path, federation={"min_patient_share": 0.9}).on(
        town.network(*hospitals)
    )
    assert outcome.state is EndState.completed

    class Broken(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            raise RuntimeError

    run = task(town, tmp_path / "broken", federation={"min_patient_share": 0.9})
    broken = drawn(run)[2][0]
    first = next(n for n, names in enumerate(drawn(run), 1) if broken in names)
    sites = [(Broken if n == broken else town.Hospital)(name=n) for n in SIX]
    with pytest.raises(RunFailed, match=rf"round {first}: 1 of 2 sites .*internal_error"):
        run.on(town.network(*sites))


def test_what_was_spent_in_an_earlier_round_is_still_spent(town: Any, tmp_path: Path) -> None:
    run = task(town, tmp_path)
    schedule = Schedule.of(run.start().config)
    name, before, again = next(
        (name, *pair)
        for name in SIX
        for pair in pairwise(schedule.rounds_of(name, SIX))
        if pair[1] > pair[0] + 1  # with rounds in between that did not ask it
    )

    class Locked(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            if request.round != again:
                return reply
            return replace(
                reply,
                status=Status.refused,
                reason=Reason.ledger_unavailable,
                spend=None,
                weights=None,
            )

    hospitals = [(Locked if n == name else town.Hospital)(name=n) for n in SIX]
    history = run.on(town.network(*hospitals)).checkpoint.history
    first, second = (history[number - 1]["sites"][name] for number in (before, again))
    assert (first["status"], second["status"]) == ("trained", "refused")
    assert second["epsilon"] == first["epsilon"] == float(before)


@pytest.mark.parametrize("late_replies", list(LateReplies))
def test_a_late_reply_of_a_site_that_the_next_round_does_not_ask(
    town: Any, tmp_path: Path, late_replies: LateReplies
) -> None:
    run = task(
        town,
        tmp_path,
        timeout_seconds=0.5,
        federation={"late_replies": late_replies},
    )
    expected = drawn(run)
    number, name = next(
        (n, name)
        for n, (now, then) in enumerate(pairwise(expected), 1)
        for name in sorted(set(now) - set(then))
    )
    net = town.slow(*(town.Hospital(name=n) for n in SIX))
    net.holds = lambda node, asked: (node, asked) == (11 + SIX.index(name), number)
    net.releases = lambda asked: asked == number + 1
    outcome = run.on(net)
    record = outcome.checkpoint.history[number]
    assert name not in record["sites"]
    used = late_replies is LateReplies.use
    (late,) = record["late"]
    assert (late["site"], late["round"], late["used"]) == (name, number, used)
    assert late["statement"]["num_events"] == number
    # A resumed run holds the site to what it said then.
    tracker = SpendTracker(outcome.checkpoint.history[: number + 1])
    back = TrainReply(
        site=name,
        status=Status.refused,
        reason=Reason.ledger_unavailable,
        num_patients=100,
        spend=town.statement(name, rounds=number - 1, epsilon=float(number - 1)),
    )
    problems = tracker.take(back, outcome.recipe)
    assert any(problem.startswith("length") for problem in problems), problems


def test_the_forecast_is_of_the_rounds_that_will_ask(town: Any, tmp_path: Path) -> None:
    """A budget for so many rounds ends with the last of them that the site is drawn in."""
    privacy = PrivacyConfig(noise_multiplier=1.0, sampling_rate=0.3, delta=1e-5)

    def spent(rounds: int) -> float:
        event = PoissonGaussianSteps(sampling_rate=0.3, noise_multiplier=1.0, steps=5 * rounds)
        return build("pld").epsilon([event], 1e-5)

    privacy = replace(privacy, budget=spent(2) * 1.001)

    class Charged(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            done = len(self.requests)
            return replace(reply, spend=town.statement(self.name, rounds=done, epsilon=spent(done)))

    training = TrainingConfig(optimizer="sgd", learning_rate=1e3)  # the town's steps are long
    run = task(town, tmp_path, config={"training": training}, rounds=12)
    start = run.start
    run.start = lambda: replace(start(), config=replace(start().config, privacy=privacy))
    hospitals = [Charged(name=n) for n in SIX]
    outcome = run.on(town.network(*hospitals))
    schedule = Schedule.of(run.start().config)
    for name in SIX:
        rounds = schedule.rounds_of(name, SIX)
        for place, number in enumerate(rounds[:2]):
            site = outcome.checkpoint.history[number - 1]["sites"][name]
            later = len(rounds) > 2
            assert site["stops_after"] == (rounds[1] if later else None), (name, place)
