"""Who takes part: late comers, strangers, impostors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from common import wire
from common.errors import RunFailed
from common.messages import Reason
from server.checkpoint import latest_checkpoint
from server.rounds import EndState


def test_nodes_that_register_late_are_waited_for(town: Any, tmp_path: Path) -> None:
    grid = town.network(*(town.Hospital(name=name) for name in town.NAMES))
    grid.absent_polls = 3
    assert town.Run(tmp_path, rounds=1).on(grid).state is EndState.completed
    assert grid.absent_polls == 0


def test_of_two_nodes_with_one_name_none_is_believed(town: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="1 of 3 sites answered"):
        town.Run(tmp_path, timeout_seconds=0.3, federation={"min_sites": 2}).on(
            town.network(*(town.Hospital(name=name) for name in ("site-1", "site-1", "site-2")))
        )


@pytest.mark.parametrize("num_patients", [0, -3])
def test_a_description_that_makes_no_sense_fails_the_run(
    town: Any, tmp_path: Path, num_patients: int
) -> None:
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    hospitals[0].num_patients = num_patients
    with pytest.raises(RunFailed, match="2 of 3 sites answered"):
        town.Run(tmp_path, timeout_seconds=0.3, federation={"min_sites": 3}).on(
            town.network(*hospitals)
        )


def test_a_stranger_is_reported_once_and_never_asked_to_train(town: Any, tmp_path: Path) -> None:
    stranger = town.Hospital(name="site-9")
    task = town.Run(tmp_path)
    outcome = task.on(town.network(stranger, *(town.Hospital(name=name) for name in town.NAMES)))
    assert outcome.state is EndState.completed
    assert stranger.requests == []
    assert [e for e in task.events if e["event"] == "stranger"] == [
        {"event": "stranger", "site": "site-9", "problem": "not an approved site"}
    ]
    assert "site-9" not in outcome.checkpoint.history[0]["sites"]
    fair = town.Run(tmp_path / "fair").on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    assert town.digest(outcome.checkpoint.weights) == town.digest(fair.checkpoint.weights)


def test_a_node_whose_gate_knows_no_approval_is_reported_and_joins_once_it_does(
    town: Any, tmp_path: Path
) -> None:
    grid = town.network(*(town.Hospital(name=name) for name in town.NAMES))
    honest, asked = grid.nodes[13], []

    def gated(message: Message) -> Message | None:
        asked.append(message.metadata.message_type)
        if len(asked) > 2:
            return honest(message)
        error = Error(code=wire.UNAPPROVED_ERROR, reason=Reason.unapproved_code.value)
        return Message(error, reply_to=message)

    grid.nodes[13] = gated
    task = town.Run(tmp_path, timeout_seconds=60)
    assert task.on(grid).state is EndState.completed
    assert [e for e in task.events if e["event"] == "stranger"] == [
        {
            "event": "stranger",
            "site": "node 13",
            "problem": "has not approved the code of this run",
        }
    ]


def test_who_comes_later_under_a_sites_name_is_a_stranger(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    impostor = town.Hospital(name="site-1")
    grid = town.network(*hospitals)

    def joins(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 1:
            grid.nodes = {5: town.node(impostor), **grid.nodes}
        seen.append(event)

    seen: list[dict[str, Any]] = []
    outcome = town.Run(tmp_path, observe=joins).on(grid)
    assert outcome.state is EndState.completed
    assert impostor.requests == []
    assert [e["site"] for e in seen if e["event"] == "stranger"] == ["site-1"]


def test_a_site_that_changed_its_patients_is_a_stranger_after_a_restart(
    town: Any, tmp_path: Path
) -> None:
    town.Run(tmp_path, rounds=1).on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.patients == dict.fromkeys(town.NAMES, 100)
    changed = town.Hospital(name="site-2", num_patients=10**6)
    task = town.Run(tmp_path, rounds=2, checkpoint=kept, timeout_seconds=0.3)
    outcome = task.on(
        town.network(town.Hospital(name="site-1"), changed, town.Hospital(name="site-3"))
    )
    assert changed.requests == []
    assert town.column(outcome, "site-2", "reason") == [None, "not_connected"]


def test_a_site_that_is_away_at_first_joins_when_it_comes(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    grid = town.network(*hospitals[:2])

    def joins(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 1:
            grid.nodes[13] = town.node(hospitals[2])

    outcome = town.Run(tmp_path, observe=joins, timeout_seconds=0.4).on(grid)
    assert outcome.state is EndState.completed_with_missing_sites
    assert town.column(outcome, "site-3", "status") == ["failed", "trained", "trained"]
    assert town.column(outcome, "site-3", "reason")[0] == "not_connected"
    # The recipe stays what it was, whoever joins.
    assert len({str(request.recipe) for h in hospitals for request in h.requests}) == 1


def test_a_restart_follows_the_same_recipe_whoever_is_there(town: Any, tmp_path: Path) -> None:
    many = [town.Hospital(name=name, num_patients=10**5) for name in town.NAMES]
    first = town.Run(tmp_path, rounds=1).on(town.network(*many))
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    rest = town.Run(tmp_path, rounds=2, checkpoint=kept, timeout_seconds=0.3).on(
        town.network(*many[:1])
    )
    assert rest.recipe == first.recipe
    assert rest.recipe.delta == pytest.approx((3 * 10**5) ** -1.1)
