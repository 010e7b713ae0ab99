"""Replies that do not come, come again, or come late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message

from common.config import LateReplies
from server.rounds import EndState


def test_a_silent_site_is_recorded_as_no_reply(town: Any, tmp_path: Path) -> None:
    grid = town.network(*(town.Hospital(name=name) for name in town.NAMES))
    grid.nodes[12] = town.on_train(grid.nodes[12], lambda message: None)
    outcome = town.Run(tmp_path, rounds=2, timeout_seconds=0.35).on(grid)
    assert town.column(outcome, "site-2", "status") == ["failed", "failed"]
    assert town.column(outcome, "site-2", "reason") == ["no_reply", "no_reply"]
    assert town.column(outcome, "site-3", "status") == ["trained", "trained"]


def test_flower_answering_for_a_lost_node_is_no_reply(town: Any, tmp_path: Path) -> None:
    def lost(message: Message) -> Message:
        return create_message_error_unavailable_res_message(message.metadata, "node_unavail")

    grid = town.network(*(town.Hospital(name=name) for name in town.NAMES))
    grid.nodes[12] = town.on_train(grid.nodes[12], lost)
    outcome = town.Run(tmp_path, rounds=1).on(grid)
    assert town.column(outcome, "site-2", "status") == ["failed"]
    assert town.column(outcome, "site-2", "reason") == ["no_reply"]
    assert town.column(outcome, "site-1", "status") == ["trained"]


@pytest.mark.parametrize(("times", "status"), [(1, "trained"), (2, "trained"), (3, "failed")])
def test_a_site_whose_work_broke_off_is_asked_again_with_the_same_request(
    town: Any, tmp_path: Path, times: int, status: str
) -> None:
    breaking = town.Breaking("site-2", times)
    task = town.Run(tmp_path, rounds=2, federation={"retries": 2})
    outcome = task.on(
        town.network(town.Hospital(name="site-1"), breaking, town.Hospital(name="site-3"))
    )
    assert town.column(outcome, "site-2", "status") == [status] * 2
    assert town.column(outcome, "site-2", "attempts") == [min(times + 1, 3)] * 2
    assert town.column(outcome, "site-1", "attempts") == [1, 1]
    assert breaking.broken == {1: min(times + 1, 3), 2: min(times + 1, 3)}
    ends = EndState.completed if status == "trained" else EndState.completed_with_missing_sites
    assert outcome.state is ends
    # Heard of once, whatever happened in between.
    heard = [e for e in task.events if e["event"] == "site" and e["site"] == "site-2"]
    assert [e["status"] for e in heard] == [status] * 2


def test_a_bad_reply_is_not_asked_for_again(town: Any, tmp_path: Path) -> None:
    liar = town.Liar("site-2", lambda w: {**w, "head.bias": np.float32([np.nan, 0])})
    outcome = town.Run(tmp_path, rounds=1, federation={"retries": 5}).on(
        town.network(town.Hospital(name="site-1"), liar, town.Hospital(name="site-3"))
    )
    assert town.column(outcome, "site-2", "attempts") == [1]
    assert town.column(outcome, "site-2", "problems") == [["weights: not finite"]]


def test_all_sites_failing_once_is_survived_by_asking_again(town: Any, tmp_path: Path) -> None:
    sites = [town.Breaking(name, 1) for name in town.NAMES]
    outcome = town.Run(tmp_path, federation={"retries": 1}).on(town.network(*sites))
    assert outcome.state is EndState.completed
    whole = town.Run(tmp_path / "whole").on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    assert town.digest(outcome.checkpoint.weights) == town.digest(whole.checkpoint.weights)


@pytest.mark.parametrize("rule", LateReplies)
def test_a_late_reply_is_reported_and_used_by_rule(
    town: Any, tmp_path: Path, rule: LateReplies
) -> None:
    """Site 3 misses the deadline of round 1, and is lost in round 2, when its reply arrives."""
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    grid = town.slow(*hospitals)
    grid.holds = lambda number, asked: number == 13
    grid.releases = lambda asked: asked == 2
    task = town.Run(tmp_path, rounds=2, timeout_seconds=0.5, federation={"late_replies": rule})
    outcome = task.on(grid)
    assert town.column(outcome, "site-3", "reason") == ["no_reply", "no_reply"]
    assert outcome.checkpoint.history[0]["late"] == []
    used = rule is LateReplies.use
    assert outcome.checkpoint.history[1]["late"] == [{"site": "site-3", "round": 1, "used": used}]
    assert {"event": "late", "site": "site-3", "round": 1} in task.events
    # What it had spent by then is known either way.
    assert town.column(outcome, "site-3", "epsilon") == [None, 1.0]
    first, second = hospitals[2].requests
    moved = {
        n: v + town.Hospital.update(hospitals[2], first)[n] - first.weights[n]
        for n, v in second.weights.items()
    }
    parts = [town.Hospital.update(hospitals[n], second) for n in (0, 1)] + [moved] * used
    for name, value in outcome.checkpoint.weights.items():
        np.testing.assert_allclose(value, np.mean([p[name] for p in parts], axis=0), rtol=1e-6)


def test_a_late_reply_never_counts_beside_one_in_time(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    grid = town.slow(*hospitals)
    grid.holds = lambda number, asked: number == 13 and asked == 1
    grid.releases = lambda asked: asked == 2
    outcome = town.Run(
        tmp_path, rounds=2, timeout_seconds=0.5, federation={"late_replies": LateReplies.use}
    ).on(grid)
    assert town.column(outcome, "site-3", "status") == ["failed", "trained"]
    assert [late["used"] for late in outcome.checkpoint.history[1]["late"]] == [False]
    second = [h.requests[1] for h in hospitals]
    parts = [town.Hospital.update(h, request) for h, request in zip(hospitals, second, strict=True)]
    for name, value in outcome.checkpoint.weights.items():
        np.testing.assert_allclose(value, np.mean([p[name] for p in parts], axis=0), rtol=1e-6)
