"""How runs end: sites that leave for good, and budgets that are spent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunFailed
from common.messages import Reason, Status, TrainReply, TrainRequest
from server.checkpoint import latest_checkpoint
from server.rounds import EndState


def test_a_site_out_of_budget_leaves_and_stays_listed(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    hospitals[1].max_rounds = 1
    task = town.Run(tmp_path, rounds=4)
    outcome = task.on(town.network(*hospitals))
    assert outcome.state is EndState.completed_with_missing_sites
    assert town.column(outcome, "site-2", "status") == ["trained", "refused", "refused", "refused"]
    assert town.column(outcome, "site-2", "reason") == [None] + ["budget_exceeded"] * 3
    assert town.column(outcome, "site-2", "epsilon") == [1.0] * 4
    assert town.column(outcome, "site-1", "status") == ["trained"] * 4
    assert [request.round for request in hospitals[1].requests] == [1, 2]
    alone = [
        town.Hospital(name=name, max_rounds=1 if name == "site-2" else 99)
        for name in reversed(town.NAMES)
    ]
    again = town.Run(tmp_path / "again", rounds=4).on(town.network(*alone))
    assert town.digest(again.checkpoint.weights) == town.digest(outcome.checkpoint.weights)


def test_when_every_budget_is_spent_the_run_stops(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name, max_rounds=2) for name in town.NAMES]
    outcome = town.Run(tmp_path, rounds=9).on(town.network(*hospitals))
    assert outcome.state is EndState.stopped_by_budget
    assert outcome.checkpoint.round == 3
    assert outcome.checkpoint.history[-1]["evaluation"] is None
    assert {len(hospital.requests) for hospital in hospitals} == {3}
    two = town.Run(tmp_path / "two", rounds=2).on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    assert town.digest(outcome.checkpoint.weights) == town.digest(two.checkpoint.weights)


def test_budgets_that_take_the_quorum_away_stop_the_run(town: Any, tmp_path: Path) -> None:
    sites = [town.Hospital(name=n, max_rounds=1 if n != "site-3" else 99) for n in town.NAMES]
    outcome = town.Run(tmp_path, rounds=5, federation={"min_sites": 2}).on(town.network(*sites))
    assert outcome.state is EndState.stopped_by_budget
    assert outcome.checkpoint.round == 2
    last = outcome.checkpoint.history[-1]
    assert last["aggregated"] is False
    assert last["evaluation"] is None
    one = town.Run(tmp_path / "one", rounds=1).on(
        town.network(*(town.Hospital(name=n) for n in town.NAMES))
    )
    assert town.digest(outcome.checkpoint.weights) == town.digest(one.checkpoint.weights)
    # Gone on with, there is nothing to do, and nobody is waited for.
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    again = town.Run(tmp_path, rounds=5, checkpoint=kept, federation={"min_sites": 2}).on(
        town.network()
    )
    assert again.state is EndState.stopped_by_budget


@pytest.mark.parametrize("reason", [Reason.model_mismatch, Reason.policy])
def test_sites_that_refuse_for_good_leave_and_too_few_fail(
    town: Any, tmp_path: Path, reason: Reason
) -> None:
    class Refusing(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            if request.round < 2:
                return reply
            return replace(reply, status=Status.refused, reason=reason, weights=None)

    two = Refusing(name="site-2")
    outcome = town.Run(tmp_path, rounds=4).on(
        town.network(town.Hospital(name="site-1"), two, town.Hospital(name="site-3"))
    )
    assert outcome.state is EndState.completed_with_missing_sites
    assert town.column(outcome, "site-2", "reason") == [None, reason, reason, reason]
    assert len(two.requests) == 2
    with pytest.raises(RunFailed, match=rf"too few sites .*site-1: {reason}"):
        town.Run(tmp_path / "all", rounds=4).on(
            town.network(*(Refusing(name=n) for n in town.NAMES))
        )
