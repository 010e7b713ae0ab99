"""Rounds and runs without enough sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import RunFailed
from common.messages import TrainReply, TrainRequest
from server.checkpoint import latest_checkpoint
from server.rounds import EndState


def test_a_round_in_which_every_site_fails_ends_the_run(town: Any, tmp_path: Path) -> None:
    class Broken(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            if request.round == 2:
                raise RuntimeError
            return super().train(request)

    task = town.Run(tmp_path)
    with pytest.raises(RunFailed, match=r"round 2: no of 3 sites .*site-1: internal_error"):
        task.on(town.network(*(Broken(name=name) for name in town.NAMES)))
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.round == 1


def test_refusals_beside_failures_end_the_run_too(town: Any, tmp_path: Path) -> None:
    class Broken(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            raise RuntimeError

    hospitals = [
        town.Hospital(name="site-1", max_rounds=0),
        Broken(name="site-2"),
        Broken(name="site-3"),
    ]
    with pytest.raises(RunFailed, match="site-1: budget_exceeded, site-2: internal_error"):
        town.Run(tmp_path).on(town.network(*hospitals))


def test_a_missing_site_at_the_start_fails_the_run(town: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="2 of 3 sites answered"):
        town.Run(tmp_path, timeout_seconds=0.3, federation={"min_sites": 3}).on(
            town.network(town.Hospital(name="site-1"), town.Hospital(name="site-2"))
        )


def test_after_a_round_without_quorum_the_run_goes_on_where_it_was(
    town: Any, tmp_path: Path
) -> None:
    class Broken(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            if request.round == 2:
                raise RuntimeError
            return super().train(request)

    first = town.Hospital(name="site-1")
    with pytest.raises(RunFailed, match=r"round 2: 1 of 3 sites .*site-2: internal_error"):
        town.Run(tmp_path, federation={"min_sites": 2}).on(
            town.network(first, Broken(name="site-2"), Broken(name="site-3"))
        )
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.round == 1
    again = [first, town.Hospital(name="site-2"), town.Hospital(name="site-3")]
    outcome = town.Run(tmp_path, checkpoint=kept, federation={"min_sites": 2}).on(
        town.network(*again)
    )
    assert outcome.state is EndState.completed
    # The same request id: a real site sends its stored reply and charges nobody again.
    assert [request.request_id for request in first.requests] == [
        f"r1/{number}/train" for number in (1, 2, 2, 3)
    ]
    whole = town.Run(tmp_path / "whole").on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    assert town.digest(outcome.checkpoint.weights) == town.digest(whole.checkpoint.weights)


def test_a_quorum_can_ask_for_a_share_of_the_patients(town: Any, tmp_path: Path) -> None:
    class Broken(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            raise RuntimeError

    def sites() -> list[Any]:
        return [
            Broken(name="site-1", num_patients=60),
            town.Hospital(name="site-2", num_patients=30),
            town.Hospital(name="site-3", num_patients=10),
        ]

    outcome = town.Run(tmp_path, federation={"min_patient_share": 0.4}).on(town.network(*sites()))
    assert outcome.state is EndState.completed_with_missing_sites
    with pytest.raises(RunFailed, match="round 1: 2 of 3"):
        town.Run(tmp_path / "more", federation={"min_patient_share": 0.41}).on(
            town.network(*sites())
        )
