"""Bad replies: what is wrong with them goes into no average and ends no run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message

from common import wire
from common.config import TrainingConfig
from common.messages import Reason, TrainReply, TrainRequest, Weights
from server.rounds import EndState


def test_a_reply_that_names_another_site_is_failed(town: Any, tmp_path: Path) -> None:
    class Impostor(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            return replace(super().train(request), site="site-1")

    outcome = town.Run(tmp_path, rounds=1).on(
        town.network(
            town.Hospital(name="site-1"), town.Hospital(name="site-2"), Impostor(name="site-3")
        )
    )
    assert town.column(outcome, "site-3", "status") == ["failed"]
    assert town.column(outcome, "site-3", "reason") == ["another_site"]
    assert town.column(outcome, "site-1", "status") == ["trained"]


def test_a_malformed_reply_is_failed_and_the_run_goes_on(town: Any, tmp_path: Path) -> None:
    grid = town.network(*(town.Hospital(name=name) for name in town.NAMES))
    honest = grid.nodes[13]

    def garbled(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        if wire.read_request(message.content).round == 1:
            reply.content["body"]["json"] = "{"
        return reply

    grid.nodes[13] = town.on_train(honest, garbled)
    outcome = town.Run(tmp_path, rounds=2).on(grid)
    assert town.column(outcome, "site-3", "status") == ["failed", "trained"]
    assert town.column(outcome, "site-3", "reason") == ["unreadable", None]


def test_a_gate_that_takes_its_approval_back_is_a_refusal_and_asked_no_more(
    town: Any, tmp_path: Path
) -> None:
    grid = town.network(*(town.Hospital(name=name) for name in town.NAMES))
    honest, asked = grid.nodes[13], []

    def gated(message: Message) -> Message | None:
        asked.append(wire.read_request(message.content).round)
        if asked[-1] == 1:
            return honest(message)
        error = Error(code=wire.UNAPPROVED_ERROR, reason=Reason.unapproved_code.value)
        return Message(error, reply_to=message)

    grid.nodes[13] = town.on_train(honest, gated)
    outcome = town.Run(tmp_path, rounds=3).on(grid)
    assert asked == [1, 2]
    assert town.column(outcome, "site-3", "status") == ["trained", "refused", "refused"]
    assert town.column(outcome, "site-3", "reason") == [None, *["unapproved_code"] * 2]
    assert outcome.state is EndState.completed_with_missing_sites


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda w: {**w, "head.bias": np.float32([np.nan, 0])}, Reason.not_finite),
        (lambda w: {**w, "head.bias": np.float32([np.inf, 0])}, Reason.not_finite),
        (lambda w: {**w, "head.bias": np.float64([1e300, 0])}, Reason.not_finite),
        (lambda w: {**w, "head.bias": np.zeros(3, np.float32)}, Reason.wrong_shape),
        (lambda w: {**w, "head.bias": np.zeros((2, 1), np.float32)}, Reason.wrong_shape),
        (lambda w: {**w, "head.bias": np.zeros(2, np.int64)}, Reason.unreadable),
        (lambda w: {"head.bias": w["head.bias"]}, Reason.wrong_shape),
        (lambda w: {**w, "extra": np.zeros(1, np.float32)}, Reason.wrong_shape),
        (lambda w: {}, Reason.wrong_shape),
    ],
)
def test_weights_that_do_not_fit_never_reach_the_average(
    town: Any, tmp_path: Path, lie: Callable[[Weights], Weights], reason: Reason
) -> None:
    outcome = town.Run(tmp_path, rounds=1).on(
        town.network(
            town.Hospital(name="site-1"), town.Liar("site-2", lie), town.Hospital(name="site-3")
        )
    )
    honest = town.Run(tmp_path / "honest", rounds=1, sites=("site-1", "site-3")).on(
        town.network(town.Hospital(name="site-1"), town.Hospital(name="site-3"))
    )
    assert town.column(outcome, "site-2", "status") == ["failed"]
    assert town.column(outcome, "site-2", "reason") == [reason]
    # What its ledger says was spent is spent, whatever becomes of the update.
    if reason is not Reason.unreadable:
        assert town.column(outcome, "site-2", "epsilon") == [1.0]
    assert town.digest(outcome.checkpoint.weights) == town.digest(honest.checkpoint.weights)


def test_an_update_with_a_bad_statement_never_reaches_the_average(
    town: Any, tmp_path: Path
) -> None:
    class Forgetful(town.Hospital):
        """In round 2 its ledger is as it was before round 1."""

        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            if request.round != 2:
                return reply
            return replace(reply, spend=town.statement(self.name, rounds=0, epsilon=0.0))

    sites = [town.Hospital(name="site-1"), town.Hospital(name="site-2"), Forgetful(name="site-3")]
    task = town.Run(tmp_path, rounds=3)
    outcome = task.on(town.network(*sites))
    assert town.column(outcome, "site-3", "status") == ["trained", "failed", "trained"]
    assert town.column(outcome, "site-3", "reason") == [None, "bad_statement", None]
    assert town.column(outcome, "site-3", "epsilon") == [1.0, 1.0, 3.0]
    assert [len(found) for found in town.column(outcome, "site-3", "problems")] == [0, 3, 0]
    assert town.column(outcome, "site-3", "statement")[1] is None
    assert town.column(outcome, "site-1", "statement")[1]["length"] == 5
    assert outcome.state is EndState.completed_with_missing_sites
    silent = [
        town.Hospital(name="site-1"),
        town.Hospital(name="site-2"),
        town.Hospital(name="site-3"),
    ]
    grid = town.network(*silent)
    honest = grid.nodes[13]

    def lost(message: Message) -> Message | None:
        if wire.read_request(message.content).round == 2:
            return create_message_error_unavailable_res_message(message.metadata, "node_unavail")
        return honest(message)

    grid.nodes[13] = town.on_train(honest, lost)
    without = town.Run(tmp_path / "without", rounds=3).on(grid)
    assert town.digest(outcome.checkpoint.weights) == town.digest(without.checkpoint.weights)


def test_a_site_cannot_change_its_weight_in_the_average(town: Any, tmp_path: Path) -> None:
    class Growing(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            return replace(super().train(request), num_patients=10**6)

    outcome = town.Run(tmp_path, rounds=1).on(
        town.network(
            town.Hospital(name="site-1"), town.Hospital(name="site-2"), Growing(name="site-3")
        )
    )
    assert town.column(outcome, "site-3", "reason") == ["bad_request"]


def test_what_a_message_carries_beside_the_reply_is_ignored(town: Any, tmp_path: Path) -> None:
    grid = town.network(*(town.Hospital(name=name) for name in town.NAMES))
    honest = grid.nodes[13]

    def greedy(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        reply.content["metrics"] = MetricRecord({wire.WEIGHT_KEY: 10**9})
        reply.content["more"] = ArrayRecord({"x": Array(np.ones(3))})
        return reply

    grid.nodes[13] = town.on_train(honest, greedy)
    outcome = town.Run(tmp_path, rounds=1).on(grid)
    fair = town.Run(tmp_path / "fair", rounds=1).on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    assert town.digest(outcome.checkpoint.weights) == town.digest(fair.checkpoint.weights)


def test_an_update_a_thousand_times_too_large_is_quarantined_and_its_spend_kept(
    town: Any,
    tmp_path: Path,
) -> None:
    def grown(weights: Weights) -> Weights:
        return {name: value + np.float32(5.0) for name, value in weights.items()}

    class Still(town.Hospital):
        def update(self, request: TrainRequest) -> Weights:
            return {name: value + np.float32(1e-3) for name, value in request.weights.items()}

    class Jumping(Still):
        def update(self, request: TrainRequest) -> Weights:
            return grown(super().update(request))

    task = town.Run(tmp_path, rounds=2, config={})
    adam = {"config": {"training": TrainingConfig(optimizer="adam", learning_rate=1e-3)}}
    task = replace(task, **adam)
    outcome = task.on(
        town.network(Still(name="site-1"), Jumping(name="site-2"), Still(name="site-3"))
    )
    assert town.column(outcome, "site-2", "reason") == ["too_large"] * 2
    assert town.column(outcome, "site-2", "epsilon") == [1.0, 2.0]
    assert town.column(outcome, "site-1", "status") == ["trained"] * 2
    assert "largest change 5" in town.column(outcome, "site-2", "problems")[0][0]
