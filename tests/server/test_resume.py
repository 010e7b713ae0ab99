"""Runs that go on from a checkpoint: the same bits, and nobody forgets what was said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config import StrategyConfig, StrategyName
from common.messages import TrainReply, TrainRequest
from server.checkpoint import Checkpoint, latest_checkpoint
from server.rounds import EndState


def test_a_resumed_run_holds_sites_to_what_they_said_before(town: Any, tmp_path: Path) -> None:
    town.Run(tmp_path, rounds=2).on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None

    class NewKey(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            other = town.statement("another", rounds=3, epsilon=3.0)
            return replace(super().train(request), spend=other)

    hospitals = [town.Hospital(name="site-1"), town.Hospital(name="site-2"), NewKey(name="site-3")]
    outcome = town.Run(tmp_path, rounds=3, checkpoint=checkpoint).on(town.network(*hospitals))
    assert town.column(outcome, "site-3", "reason") == [None, None, "bad_statement"]
    assert (
        "public_key: not the key this site is known by"
        in (outcome.checkpoint.history[-1]["sites"]["site-3"]["problems"])
    )


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(town: Any, tmp_path: Path, after: int) -> None:
    def hospitals() -> list[Any]:
        return [town.Hospital(name=n, max_rounds=2 if n == "site-2" else 99) for n in town.NAMES]

    whole = town.Run(tmp_path / "whole", rounds=4).on(town.network(*hospitals()))

    def cut(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == after:
            raise town.PowerCut

    with pytest.raises(town.PowerCut):
        town.Run(tmp_path, rounds=4, observe=cut).on(town.network(*hospitals()))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.round == after
    sites = hospitals()
    task = town.Run(tmp_path, rounds=4, checkpoint=checkpoint)
    resumed = task.on(town.network(*sites))
    assert town.digest(resumed.checkpoint.weights) == town.digest(whole.checkpoint.weights)
    assert town.timeless(resumed) == town.timeless(whole)
    assert resumed.state is whole.state is EndState.completed_with_missing_sites
    assert task.events[0]["first_round"] == after + 1
    assert [r.round for r in sites[0].requests] == list(range(after + 1, 5))
    # A site that had left before is not asked again.
    assert [r.round for r in sites[1].requests] == [r for r in range(after + 1, 5) if r <= 3]


@pytest.mark.parametrize(
    "name", [StrategyName.fedadam, StrategyName.scaffold, StrategyName.fedavgm]
)
def test_a_run_cut_after_every_round_ends_with_the_same_bits(
    town: Any, tmp_path: Path, name: StrategyName
) -> None:
    config = {"config": {"strategy": StrategyConfig(name=name)}}

    def hospitals() -> list[Any]:
        return [town.Hospital(name=name) for name in town.NAMES]

    whole = replace(town.Run(tmp_path / "whole", rounds=8), **config).on(town.network(*hospitals()))
    checkpoint: Checkpoint | None = None
    for after in range(1, 9):

        def cut(event: dict[str, Any], last: int = after) -> None:
            if event["event"] == "round" and event["round"] == last:
                raise town.PowerCut

        task = replace(town.Run(tmp_path, rounds=8, observe=cut), **config)
        if checkpoint is not None:
            task.checkpoint = checkpoint
        with pytest.raises(town.PowerCut):
            task.on(town.network(*hospitals()))
        checkpoint = latest_checkpoint(tmp_path / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.round == after
    assert checkpoint is not None
    assert town.digest(checkpoint.weights) == town.digest(whole.checkpoint.weights)
