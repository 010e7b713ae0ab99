"""One run over an in-memory network: who trains, who weighs what, who hears of it."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.messages import Reason, Status, TrainReply, TrainRequest
from server.rounds import EndState


def test_sites_train_and_their_spend_is_recorded(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    outcome = town.Run(tmp_path).on(town.network(*hospitals))
    assert outcome.state is EndState.completed
    assert {name: site.num_patients for name, site in outcome.sites.items()} == dict.fromkeys(
        town.NAMES, 100
    )
    assert [record["round"] for record in outcome.checkpoint.history] == [1, 2, 3]
    for name in town.NAMES:
        assert town.column(outcome, name, "status") == ["trained"] * 3
        assert town.column(outcome, name, "epsilon") == [1.0, 2.0, 3.0]
        assert town.column(outcome, name, "reason") == [None] * 3
    assert [request.round for request in hospitals[0].requests] == [1, 2, 3]
    assert hospitals[0].requests[0].frozen_sha256 == "f0"
    assert {request.run_id for request in hospitals[0].requests} == {"r1"}
    sent = hospitals[1].requests[2].weights
    evaluation = outcome.checkpoint.history[1]["evaluation"]
    assert evaluation == {"split": "val", "auroc": float(sent["head.bias"][0])}


def test_sites_weigh_by_their_number_of_patients(town: Any, tmp_path: Path) -> None:
    hospitals = [
        town.Liar(
            name,
            lambda weights, value=value: {k: np.full_like(v, value) for k, v in weights.items()},
        )
        for name, value in zip(town.NAMES, (1.0, 2.0, 6.0), strict=True)
    ]
    for hospital, num_patients in zip(hospitals, (10, 30, 60), strict=True):
        hospital.num_patients = num_patients
    outcome = town.Run(tmp_path, rounds=1).on(town.network(*hospitals))
    # ten, thirty and sixty patients of a hundred: 0.1 + 0.6 + 3.6
    for value in outcome.checkpoint.weights.values():
        np.testing.assert_allclose(value, 4.3, rtol=1e-6)


def test_a_failing_site_is_recorded_and_asked_again(town: Any, tmp_path: Path) -> None:
    class Flaky(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            if request.round == 2:
                raise RuntimeError("patient 4711")
            return super().train(request)

    outcome = town.Run(tmp_path).on(
        town.network(
            town.Hospital(name="site-1"), Flaky(name="site-2"), town.Hospital(name="site-3")
        )
    )
    assert outcome.state is EndState.completed_with_missing_sites
    assert town.column(outcome, "site-2", "status") == ["trained", "failed", "trained"]
    assert town.column(outcome, "site-2", "reason") == [None, "internal_error", None]
    assert town.column(outcome, "site-2", "epsilon") == [1.0, 1.0, 3.0]
    assert "4711" not in str(outcome.checkpoint.history)


def test_a_refusal_for_another_reason_is_not_for_good(town: Any, tmp_path: Path) -> None:
    class Locked(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            if request.round != 2:
                return reply
            return replace(
                reply,
                status=Status.refused,
                reason=Reason.ledger_unavailable,
                spend=None,
                weights=None,
            )

    outcome = town.Run(tmp_path).on(
        town.network(
            town.Hospital(name="site-1"), town.Hospital(name="site-2"), Locked(name="site-3")
        )
    )
    assert town.column(outcome, "site-3", "status") == ["trained", "refused", "trained"]
    assert town.column(outcome, "site-3", "reason") == [None, "ledger_unavailable", None]
    # What was spent before is still spent: null would read as infinite.
    assert town.column(outcome, "site-3", "epsilon") == [1.0, 1.0, 3.0]


def test_an_infinite_epsilon_stays_null(town: Any, tmp_path: Path) -> None:
    hospitals = [town.Hospital(name=name, epsilon_per_round=None) for name in town.NAMES]
    outcome = town.Run(tmp_path, rounds=2).on(town.network(*hospitals))
    assert town.column(outcome, "site-1", "epsilon") == [None, None]
    assert town.column(outcome, "site-1", "status") == ["trained", "trained"]


def test_the_order_of_replies_and_nodes_does_not_matter(town: Any, tmp_path: Path) -> None:
    scales = dict(zip((f"site-{n}" for n in range(1, 6)), (1e8, 3.0, -1e8, 0.1, 7.0), strict=True))

    def hospitals() -> list[Any]:
        return [
            town.Liar(
                name,
                lambda weights, s=s: {k: (v + np.float32(s)) for k, v in weights.items()},
            )
            for name, s in scales.items()
        ]

    sums = {
        float(sum((np.float32(s) * 0.2 for s in order), np.float32(0)))
        for order in itertools.permutations(np.float32(list(scales.values())))
    }
    assert len(sums) > 1  # the numbers do expose the order

    def one(number: int) -> str:
        chance = random.Random(number)
        sites = hospitals()
        chance.shuffle(sites)
        task = town.Run(tmp_path / str(number), rounds=2, num_sites=5)
        return town.digest(task.on(town.network(*sites, shuffle=chance)).checkpoint.weights)

    assert len({one(number) for number in range(8)}) == 1


def test_observers_hear_of_plan_sites_and_rounds(town: Any, tmp_path: Path) -> None:
    task = town.Run(tmp_path, rounds=2)
    hospitals = [town.Hospital(name=name) for name in town.NAMES]
    hospitals[2].max_rounds = 1
    outcome = task.on(town.network(*hospitals))
    kinds = [event["event"] for event in task.events]
    assert kinds == ["planned", "site", "site", "site", "round", "site", "site", "site", "round"]
    planned = task.events[0]
    assert planned["sites"] == dict.fromkeys(town.NAMES, 100)
    assert (planned["rounds"], planned["first_round"]) == (2, 1)
    assert planned["recipe"] == outcome.recipe.to_dict()
    assert {event["site"] for event in task.events[1:4]} == set(town.NAMES)
    refused = next(e for e in task.events[5:] if e.get("site") == "site-3")
    assert refused == {
        "event": "site",
        "round": 2,
        "site": "site-3",
        "status": "refused",
        "epsilon": 1.0,
        "reason": "budget_exceeded",
    }
    assert {k: v for k, v in task.events[-1].items() if k != "event"} == outcome.checkpoint.history[
        -1
    ]


@pytest.mark.parametrize("every", [2, 3])
def test_the_model_is_looked_at_every_so_many_rounds_and_at_the_end(
    town: Any, tmp_path: Path, every: int
) -> None:
    outcome = town.Run(tmp_path, rounds=4, federation={"evaluate_every": every}).on(
        town.network(*(town.Hospital(name=name) for name in town.NAMES))
    )
    looked = [record["evaluation"] is not None for record in outcome.checkpoint.history]
    assert looked == [number % every == 0 or number == 4 for number in range(1, 5)]
