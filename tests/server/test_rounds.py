from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import build as build_client
from common import wire
from common.config import (
    Config,
    FederationConfig,
    LateReplies,
    Mechanism,
    PrivacyConfig,
    StrategyConfig,
    StrategyName,
    TrainingConfig,
    Unit,
)
from common.errors import RunFailed
from common.messages import (
    Reason,
    SiteDescription,
    Status,
    TrainReply,
    TrainRequest,
    Weights,
)
from common.privacy.keys import SiteKey
from common.privacy.statement import SpendStatement
from server.checkpoint import Checkpoint, latest_checkpoint
from server.rounds import EndState, Outcome, Start, run

Node = Callable[[Message], Message | None]
NAMES = ("site-1", "site-2", "site-3")


@pytest.fixture(autouse=True)
def server_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower stamps every message with the identity of the process that makes it."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class MemoryNetwork(Grid):
    """Nodes in this process: one reply a pull, in an order of the test's choice."""

    def __init__(self, nodes: dict[int, Node], *, shuffle: random.Random | None = None) -> None:
        self.nodes = nodes
        self.absent_polls = 0
        self._shuffle = shuffle
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *arguments: Any, **more: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        if self.absent_polls:
            self.absent_polls -= 1
            return list(self.nodes)[:1]
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers: list[str] = []
        for message in messages:
            number = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            numbers.append(number)
            reply = self.nodes[message.metadata.dst_node_id](copy.deepcopy(message))
            if reply is not None:
                self._replies[number] = reply
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = sorted(set(message_ids) & set(self._replies))
        if self._shuffle is not None:
            self._shuffle.shuffle(ready)
        return [self._replies.pop(number) for number in ready]


def statement(site: str, *, rounds: int, epsilon: float | None) -> dict[str, Any]:
    """What a ledger that holds so many rounds says, signed by the site's key."""
    total = math.inf if epsilon is None else epsilon
    unsigned = SpendStatement(
        cohort=f"cohort of {site}",
        epsilon=total,
        epsilon_committed=total,
        epsilon_patient=None,
        delta=1e-7,
        unit=Unit.patient,
        accountant="pld",
        adjacency="zero-out",
        num_events=rounds,
        num_open=0,
        length=1 + 2 * rounds,
        head=hashlib.sha256(f"{site} {rounds}".encode()).hexdigest(),
        public_key="",
    )
    return unsigned.signed(SiteKey(hashlib.sha256(site.encode()).digest())).to_dict()


@dataclass(kw_only=True)
class Hospital:
    """A site whose training adds a number that depends on its name and the round."""

    name: str
    num_patients: int = 100
    max_rounds: int = 99
    epsilon_per_round: float | None = 1.0
    requests: list[TrainRequest] = field(default_factory=list[TrainRequest])

    def describe(self) -> SiteDescription:
        return SiteDescription(site=self.name, num_patients=self.num_patients)

    def train(self, request: TrainRequest) -> TrainReply:
        self.requests.append(request)
        done = min(request.round, self.max_rounds)
        spent = None if self.epsilon_per_round is None else self.epsilon_per_round * done
        reply = TrainReply(
            site=self.name,
            status=Status.trained,
            num_patients=self.num_patients,
            spend=statement(self.name, rounds=done, epsilon=spent),
            weights=self.update(request),
        )
        if request.round > self.max_rounds:
            return replace(
                reply, status=Status.refused, reason=Reason.budget_exceeded, weights=None
            )
        return reply

    def update(self, request: TrainRequest) -> Weights:
        step = int(self.name[-1]) / (3 + request.round)
        return {
            name: (value * np.float32(0.9) + np.float32(step)).astype(np.float32)
            for name, value in request.weights.items()
        }


class Liar(Hospital):
    """A site whose weights are what the test says."""

    def __init__(self, name: str, lie: Callable[[Weights], Weights]) -> None:
        super().__init__(name=name)
        self._lie = lie

    def update(self, request: TrainRequest) -> Weights:
        return self._lie(super().update(request))


def node(hospital: Any) -> Node:
    app = build_client(lambda context: hospital)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return lambda message: app(message, context)


def network(*hospitals: Any, shuffle: random.Random | None = None) -> MemoryNetwork:
    return MemoryNetwork(
        {number: node(hospital) for number, hospital in enumerate(hospitals, start=11)},
        shuffle=shuffle,
    )


def on_train(inner: Node, answer: Callable[[Message], Message | None]) -> Node:
    """A node that says who it is as ``inner`` does, and answers training itself."""
    return lambda m: answer(m) if m.metadata.message_type == "train" else inner(m)


def initial() -> Weights:
    return {"head.bias": np.zeros(2, np.float32), "head.weight": np.ones((2, 3), np.float32)}


@dataclass
class Run:
    """A run to be, and what was observed of it."""

    folder: Path
    rounds: int = 3
    num_sites: int = 3
    timeout_seconds: float = 3.0
    sites: tuple[str, ...] = ()
    federation: dict[str, Any] = field(default_factory=dict[str, Any])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    checkpoint: Checkpoint = field(
        default_factory=lambda: Checkpoint(run_id="r1", round=0, weights=initial())
    )
    observe: Callable[[dict[str, Any]], None] | None = None

    def start(self) -> Start:
        return Start(
            config=Config(
                privacy=PrivacyConfig(mechanism=Mechanism.none),
                federation=FederationConfig(
                    num_sites=self.num_sites,
                    rounds=self.rounds,
                    **{
                        "wait_seconds": self.timeout_seconds,
                        "timeout_seconds": self.timeout_seconds,
                        "retries": 0,
                        "retry_seconds": 0.01,
                        **self.federation,
                    },
                ),
                **{"training": TrainingConfig(optimizer="sgd"), **self.config},
            ),
            sites=self.sites or tuple(f"site-{n}" for n in range(1, self.num_sites + 1)),
            checkpoint=self.checkpoint,
            frozen_sha256="f0",
            checkpoints=self.folder / "checkpoints",
            evaluate=lambda weights: {"split": "val", "auroc": float(weights["head.bias"][0])},
            observe=self.observe or self.events.append,
        )

    def on(self, grid: Grid) -> Outcome:
        return run(grid, self.start())


def digest(weights: Weights) -> str:
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + weights[name].tobytes())
    return found.hexdigest()


def column(outcome: Outcome, site: str, key: str) -> list[Any]:
    return [record["sites"][site][key] for record in outcome.checkpoint.history]


def timeless(outcome: Outcome) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in outcome.checkpoint.history]


def test_sites_train_and_their_spend_is_recorded(tmp_path: Path) -> None:
    hospitals = [Hospital(name=name) for name in NAMES]
    outcome = Run(tmp_path).on(network(*hospitals))
    assert outcome.state is EndState.completed
    assert {name: site.num_patients for name, site in outcome.sites.items()} == dict.fromkeys(
        NAMES, 100
    )
    assert [record["round"] for record in outcome.checkpoint.history] == [1, 2, 3]
    for name in NAMES:
        assert column(outcome, name, "status") == ["trained"] * 3
        assert column(outcome, name, "epsilon") == [1.0, 2.0, 3.0]
        assert column(outcome, name, "reason") == [None] * 3
    assert [request.round for request in hospitals[0].requests] == [1, 2, 3]
    assert hospitals[0].requests[0].frozen_sha256 == "f0"
    assert {request.run_id for request in hospitals[0].requests} == {"r1"}
    sent = hospitals[1].requests[2].weights
    evaluation = outcome.checkpoint.history[1]["evaluation"]
    assert evaluation == {"split": "val", "auroc": float(sent["head.bias"][0])}


def test_sites_weigh_by_their_number_of_patients(tmp_path: Path) -> None:
    hospitals = [
        Liar(
            name,
            lambda weights, value=value: {k: np.full_like(v, value) for k, v in weights.items()},
        )
        for name, value in zip(NAMES, (1.0, 2.0, 6.0), strict=True)
    ]
    for hospital, num_patients in zip(hospitals, (10, 30, 60), strict=True):
        hospital.num_patients = num_patients
    outcome = Run(tmp_path, rounds=1).on(network(*hospitals))
    # ten, thirty and sixty patients of a hundred: 0.1 + 0.6 + 3.6
    for value in outcome.checkpoint.weights.values():
        np.testing.assert_allclose(value, 4.3, rtol=1e-6)


def test_a_site_out_of_budget_leaves_and_stays_listed(tmp_path: Path) -> None:
    hospitals = [Hospital(name=name) for name in NAMES]
    hospitals[1].max_rounds = 1
    task = Run(tmp_path, rounds=4)
    outcome = task.on(network(*hospitals))
    assert outcome.state is EndState.completed_with_missing_sites
    assert column(outcome, "site-2", "status") == ["trained", "refused", "refused", "refused"]
    assert column(outcome, "site-2", "reason") == [None] + ["budget_exceeded"] * 3
    assert column(outcome, "site-2", "epsilon") == [1.0] * 4
    assert column(outcome, "site-1", "status") == ["trained"] * 4
    assert [request.round for request in hospitals[1].requests] == [1, 2]
    alone = [
        Hospital(name=name, max_rounds=1 if name == "site-2" else 99) for name in reversed(NAMES)
    ]
    again = Run(tmp_path / "again", rounds=4).on(network(*alone))
    assert digest(again.checkpoint.weights) == digest(outcome.checkpoint.weights)


def test_when_every_budget_is_spent_the_run_stops(tmp_path: Path) -> None:
    hospitals = [Hospital(name=name, max_rounds=2) for name in NAMES]
    outcome = Run(tmp_path, rounds=9).on(network(*hospitals))
    assert outcome.state is EndState.stopped_by_budget
    assert outcome.checkpoint.round == 3
    assert outcome.checkpoint.history[-1]["evaluation"] is None
    assert {len(hospital.requests) for hospital in hospitals} == {3}
    two = Run(tmp_path / "two", rounds=2).on(network(*(Hospital(name=name) for name in NAMES)))
    assert digest(outcome.checkpoint.weights) == digest(two.checkpoint.weights)


def test_a_failing_site_is_recorded_and_asked_again(tmp_path: Path) -> None:
    class Flaky(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            if request.round == 2:
                raise RuntimeError("patient 4711")
            return super().train(request)

    outcome = Run(tmp_path).on(
        network(Hospital(name="site-1"), Flaky(name="site-2"), Hospital(name="site-3"))
    )
    assert outcome.state is EndState.completed_with_missing_sites
    assert column(outcome, "site-2", "status") == ["trained", "failed", "trained"]
    assert column(outcome, "site-2", "reason") == [None, "internal_error", None]
    assert column(outcome, "site-2", "epsilon") == [1.0, 1.0, 3.0]
    assert "4711" not in str(outcome.checkpoint.history)


def test_a_silent_site_is_recorded_as_no_reply(tmp_path: Path) -> None:
    grid = network(*(Hospital(name=name) for name in NAMES))
    grid.nodes[12] = on_train(grid.nodes[12], lambda message: None)
    outcome = Run(tmp_path, rounds=2, timeout_seconds=0.35).on(grid)
    assert column(outcome, "site-2", "status") == ["failed", "failed"]
    assert column(outcome, "site-2", "reason") == ["no_reply", "no_reply"]
    assert column(outcome, "site-3", "status") == ["trained", "trained"]


def test_flower_answering_for_a_lost_node_is_no_reply(tmp_path: Path) -> None:
    def lost(message: Message) -> Message:
        return create_message_error_unavailable_res_message(message.metadata, "node_unavail")

    grid = network(*(Hospital(name=name) for name in NAMES))
    grid.nodes[12] = on_train(grid.nodes[12], lost)
    outcome = Run(tmp_path, rounds=1).on(grid)
    assert column(outcome, "site-2", "status") == ["failed"]
    assert column(outcome, "site-2", "reason") == ["no_reply"]
    assert column(outcome, "site-1", "status") == ["trained"]


def test_a_round_in_which_every_site_fails_ends_the_run(tmp_path: Path) -> None:
    class Broken(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            if request.round == 2:
                raise RuntimeError
            return super().train(request)

    task = Run(tmp_path)
    with pytest.raises(RunFailed, match=r"round 2: no of 3 sites .*site-1: internal_error"):
        task.on(network(*(Broken(name=name) for name in NAMES)))
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.round == 1


def test_refusals_beside_failures_end_the_run_too(tmp_path: Path) -> None:
    class Broken(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            raise RuntimeError

    hospitals = [
        Hospital(name="site-1", max_rounds=0),
        Broken(name="site-2"),
        Broken(name="site-3"),
    ]
    with pytest.raises(RunFailed, match="site-1: budget_exceeded, site-2: internal_error"):
        Run(tmp_path).on(network(*hospitals))


def test_a_refusal_for_another_reason_is_not_for_good(tmp_path: Path) -> None:
    class Locked(Hospital):
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

    outcome = Run(tmp_path).on(
        network(Hospital(name="site-1"), Hospital(name="site-2"), Locked(name="site-3"))
    )
    assert column(outcome, "site-3", "status") == ["trained", "refused", "trained"]
    assert column(outcome, "site-3", "reason") == [None, "ledger_unavailable", None]
    # What was spent before is still spent: null would read as infinite.
    assert column(outcome, "site-3", "epsilon") == [1.0, 1.0, 3.0]


def test_an_infinite_epsilon_stays_null(tmp_path: Path) -> None:
    hospitals = [Hospital(name=name, epsilon_per_round=None) for name in NAMES]
    outcome = Run(tmp_path, rounds=2).on(network(*hospitals))
    assert column(outcome, "site-1", "epsilon") == [None, None]
    assert column(outcome, "site-1", "status") == ["trained", "trained"]


def test_the_order_of_replies_and_nodes_does_not_matter(tmp_path: Path) -> None:
    scales = dict(zip((f"site-{n}" for n in range(1, 6)), (1e8, 3.0, -1e8, 0.1, 7.0), strict=True))

    def hospitals() -> list[Hospital]:
        return [
            Liar(
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
        task = Run(tmp_path / str(number), rounds=2, num_sites=5)
        return digest(task.on(network(*sites, shuffle=chance)).checkpoint.weights)

    assert len({one(number) for number in range(8)}) == 1


def test_a_reply_that_names_another_site_is_failed(tmp_path: Path) -> None:
    class Impostor(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            return replace(super().train(request), site="site-1")

    outcome = Run(tmp_path, rounds=1).on(
        network(Hospital(name="site-1"), Hospital(name="site-2"), Impostor(name="site-3"))
    )
    assert column(outcome, "site-3", "status") == ["failed"]
    assert column(outcome, "site-3", "reason") == ["another_site"]
    assert column(outcome, "site-1", "status") == ["trained"]


def test_a_malformed_reply_is_failed_and_the_run_goes_on(tmp_path: Path) -> None:
    grid = network(*(Hospital(name=name) for name in NAMES))
    honest = grid.nodes[13]

    def garbled(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        if wire.read_request(message.content).round == 1:
            reply.content["body"]["json"] = "{"
        return reply

    grid.nodes[13] = on_train(honest, garbled)
    outcome = Run(tmp_path, rounds=2).on(grid)
    assert column(outcome, "site-3", "status") == ["failed", "trained"]
    assert column(outcome, "site-3", "reason") == ["unreadable", None]


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
    tmp_path: Path, lie: Callable[[Weights], Weights], reason: Reason
) -> None:
    outcome = Run(tmp_path, rounds=1).on(
        network(Hospital(name="site-1"), Liar("site-2", lie), Hospital(name="site-3"))
    )
    honest = Run(tmp_path / "honest", rounds=1, sites=("site-1", "site-3")).on(
        network(Hospital(name="site-1"), Hospital(name="site-3"))
    )
    assert column(outcome, "site-2", "status") == ["failed"]
    assert column(outcome, "site-2", "reason") == [reason]
    # What its ledger says was spent is spent, whatever becomes of the update.
    if reason is not Reason.unreadable:
        assert column(outcome, "site-2", "epsilon") == [1.0]
    assert digest(outcome.checkpoint.weights) == digest(honest.checkpoint.weights)


def test_an_update_with_a_bad_statement_never_reaches_the_average(tmp_path: Path) -> None:
    class Forgetful(Hospital):
        """In round 2 its ledger is as it was before round 1."""

        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            if request.round != 2:
                return reply
            return replace(reply, spend=statement(self.name, rounds=0, epsilon=0.0))

    sites = [Hospital(name="site-1"), Hospital(name="site-2"), Forgetful(name="site-3")]
    task = Run(tmp_path, rounds=3)
    outcome = task.on(network(*sites))
    assert column(outcome, "site-3", "status") == ["trained", "failed", "trained"]
    assert column(outcome, "site-3", "reason") == [None, "bad_statement", None]
    assert column(outcome, "site-3", "epsilon") == [1.0, 1.0, 3.0]
    assert [len(found) for found in column(outcome, "site-3", "problems")] == [0, 3, 0]
    assert column(outcome, "site-3", "statement")[1] is None
    assert column(outcome, "site-1", "statement")[1]["length"] == 5
    assert outcome.state is EndState.completed_with_missing_sites
    silent = [Hospital(name="site-1"), Hospital(name="site-2"), Hospital(name="site-3")]
    grid = network(*silent)
    honest = grid.nodes[13]

    def lost(message: Message) -> Message | None:
        if wire.read_request(message.content).round == 2:
            return create_message_error_unavailable_res_message(message.metadata, "node_unavail")
        return honest(message)

    grid.nodes[13] = on_train(honest, lost)
    without = Run(tmp_path / "without", rounds=3).on(grid)
    assert digest(outcome.checkpoint.weights) == digest(without.checkpoint.weights)


def test_a_resumed_run_holds_sites_to_what_they_said_before(tmp_path: Path) -> None:
    Run(tmp_path, rounds=2).on(network(*(Hospital(name=name) for name in NAMES)))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None

    class NewKey(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            other = statement("another", rounds=3, epsilon=3.0)
            return replace(super().train(request), spend=other)

    hospitals = [Hospital(name="site-1"), Hospital(name="site-2"), NewKey(name="site-3")]
    outcome = Run(tmp_path, rounds=3, checkpoint=checkpoint).on(network(*hospitals))
    assert column(outcome, "site-3", "reason") == [None, None, "bad_statement"]
    assert (
        "public_key: not the key this site is known by"
        in (outcome.checkpoint.history[-1]["sites"]["site-3"]["problems"])
    )


def test_a_site_cannot_change_its_weight_in_the_average(tmp_path: Path) -> None:
    class Growing(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            return replace(super().train(request), num_patients=10**6)

    outcome = Run(tmp_path, rounds=1).on(
        network(Hospital(name="site-1"), Hospital(name="site-2"), Growing(name="site-3"))
    )
    assert column(outcome, "site-3", "reason") == ["bad_request"]


def test_what_a_message_carries_beside_the_reply_is_ignored(tmp_path: Path) -> None:
    grid = network(*(Hospital(name=name) for name in NAMES))
    honest = grid.nodes[13]

    def greedy(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        reply.content["metrics"] = MetricRecord({wire.WEIGHT_KEY: 10**9})
        reply.content["more"] = ArrayRecord({"x": Array(np.ones(3))})
        return reply

    grid.nodes[13] = on_train(honest, greedy)
    outcome = Run(tmp_path, rounds=1).on(grid)
    fair = Run(tmp_path / "fair", rounds=1).on(network(*(Hospital(name=name) for name in NAMES)))
    assert digest(outcome.checkpoint.weights) == digest(fair.checkpoint.weights)


def test_nodes_that_register_late_are_waited_for(tmp_path: Path) -> None:
    grid = network(*(Hospital(name=name) for name in NAMES))
    grid.absent_polls = 3
    assert Run(tmp_path, rounds=1).on(grid).state is EndState.completed
    assert grid.absent_polls == 0


def test_a_missing_site_at_the_start_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="2 of 3 sites answered"):
        Run(tmp_path, timeout_seconds=0.3, federation={"min_sites": 3}).on(
            network(Hospital(name="site-1"), Hospital(name="site-2"))
        )


def test_of_two_nodes_with_one_name_none_is_believed(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="1 of 3 sites answered"):
        Run(tmp_path, timeout_seconds=0.3, federation={"min_sites": 2}).on(
            network(*(Hospital(name=name) for name in ("site-1", "site-1", "site-2")))
        )


@pytest.mark.parametrize("num_patients", [0, -3])
def test_a_description_that_makes_no_sense_fails_the_run(tmp_path: Path, num_patients: int) -> None:
    hospitals = [Hospital(name=name) for name in NAMES]
    hospitals[0].num_patients = num_patients
    with pytest.raises(RunFailed, match="2 of 3 sites answered"):
        Run(tmp_path, timeout_seconds=0.3, federation={"min_sites": 3}).on(network(*hospitals))


class PowerCut(BaseException):
    """Ends a run between two rounds."""


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, after: int) -> None:
    def hospitals() -> list[Hospital]:
        return [Hospital(name=n, max_rounds=2 if n == "site-2" else 99) for n in NAMES]

    whole = Run(tmp_path / "whole", rounds=4).on(network(*hospitals()))

    def cut(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == after:
            raise PowerCut

    with pytest.raises(PowerCut):
        Run(tmp_path, rounds=4, observe=cut).on(network(*hospitals()))
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.round == after
    sites = hospitals()
    task = Run(tmp_path, rounds=4, checkpoint=checkpoint)
    resumed = task.on(network(*sites))
    assert digest(resumed.checkpoint.weights) == digest(whole.checkpoint.weights)
    assert timeless(resumed) == timeless(whole)
    assert resumed.state is whole.state is EndState.completed_with_missing_sites
    assert task.events[0]["first_round"] == after + 1
    assert [r.round for r in sites[0].requests] == list(range(after + 1, 5))
    # A site that had left before is not asked again.
    assert [r.round for r in sites[1].requests] == [r for r in range(after + 1, 5) if r <= 3]


def test_observers_hear_of_plan_sites_and_rounds(tmp_path: Path) -> None:
    task = Run(tmp_path, rounds=2)
    hospitals = [Hospital(name=name) for name in NAMES]
    hospitals[2].max_rounds = 1
    outcome = task.on(network(*hospitals))
    kinds = [event["event"] for event in task.events]
    assert kinds == ["planned", "site", "site", "site", "round", "site", "site", "site", "round"]
    planned = task.events[0]
    assert planned["sites"] == dict.fromkeys(NAMES, 100)
    assert (planned["rounds"], planned["first_round"]) == (2, 1)
    assert planned["recipe"] == outcome.recipe.to_dict()
    assert {event["site"] for event in task.events[1:4]} == set(NAMES)
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


class SlowNetwork(MemoryNetwork):
    """Replies to training wait here until the test lets them through."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        super().__init__(nodes)
        self.held: dict[str, Message] = {}
        self.holds: Callable[[int, int], bool] = lambda node, number: False
        self.releases: Callable[[int], bool] = lambda number: False

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        numbers = list(super().push_messages(batch))
        for number, message in zip(numbers, batch, strict=True):
            if message.metadata.message_type != "train":
                continue
            asked = wire.read_request(message.content).round
            if self.releases(asked):
                self._replies |= self.held
                self.held = {}
            if self.holds(message.metadata.dst_node_id, asked) and number in self._replies:
                self.held[number] = self._replies.pop(number)
        return numbers


def slow(*hospitals: Any) -> SlowNetwork:
    return SlowNetwork({number: node(hospital) for number, hospital in enumerate(hospitals, 11)})


class Breaking(Hospital):
    """Its work breaks off so many times in each round."""

    def __init__(self, name: str, times: int) -> None:
        super().__init__(name=name)
        self.times = times
        self.broken: dict[int, int] = {}

    def train(self, request: TrainRequest) -> TrainReply:
        self.broken[request.round] = self.broken.get(request.round, 0) + 1
        if self.broken[request.round] <= self.times:
            raise RuntimeError
        return super().train(request)


@pytest.mark.parametrize(("times", "status"), [(1, "trained"), (2, "trained"), (3, "failed")])
def test_a_site_whose_work_broke_off_is_asked_again_with_the_same_request(
    tmp_path: Path, times: int, status: str
) -> None:
    breaking = Breaking("site-2", times)
    task = Run(tmp_path, rounds=2, federation={"retries": 2})
    outcome = task.on(network(Hospital(name="site-1"), breaking, Hospital(name="site-3")))
    assert column(outcome, "site-2", "status") == [status] * 2
    assert column(outcome, "site-2", "attempts") == [min(times + 1, 3)] * 2
    assert column(outcome, "site-1", "attempts") == [1, 1]
    assert breaking.broken == {1: min(times + 1, 3), 2: min(times + 1, 3)}
    ends = EndState.completed if status == "trained" else EndState.completed_with_missing_sites
    assert outcome.state is ends
    # Heard of once, whatever happened in between.
    heard = [e for e in task.events if e["event"] == "site" and e["site"] == "site-2"]
    assert [e["status"] for e in heard] == [status] * 2


def test_a_bad_reply_is_not_asked_for_again(tmp_path: Path) -> None:
    liar = Liar("site-2", lambda w: {**w, "head.bias": np.float32([np.nan, 0])})
    outcome = Run(tmp_path, rounds=1, federation={"retries": 5}).on(
        network(Hospital(name="site-1"), liar, Hospital(name="site-3"))
    )
    assert column(outcome, "site-2", "attempts") == [1]
    assert column(outcome, "site-2", "problems") == [["weights: not finite"]]


def test_all_sites_failing_once_is_survived_by_asking_again(tmp_path: Path) -> None:
    sites = [Breaking(name, 1) for name in NAMES]
    outcome = Run(tmp_path, federation={"retries": 1}).on(network(*sites))
    assert outcome.state is EndState.completed
    whole = Run(tmp_path / "whole").on(network(*(Hospital(name=name) for name in NAMES)))
    assert digest(outcome.checkpoint.weights) == digest(whole.checkpoint.weights)


def test_after_a_round_without_quorum_the_run_goes_on_where_it_was(tmp_path: Path) -> None:
    class Broken(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            if request.round == 2:
                raise RuntimeError
            return super().train(request)

    first = Hospital(name="site-1")
    with pytest.raises(RunFailed, match=r"round 2: 1 of 3 sites .*site-2: internal_error"):
        Run(tmp_path, federation={"min_sites": 2}).on(
            network(first, Broken(name="site-2"), Broken(name="site-3"))
        )
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.round == 1
    again = [first, Hospital(name="site-2"), Hospital(name="site-3")]
    outcome = Run(tmp_path, checkpoint=kept, federation={"min_sites": 2}).on(network(*again))
    assert outcome.state is EndState.completed
    # The same request id: a real site sends its stored reply and charges nobody again.
    assert [request.request_id for request in first.requests] == [
        f"r1/{number}/train" for number in (1, 2, 2, 3)
    ]
    whole = Run(tmp_path / "whole").on(network(*(Hospital(name=name) for name in NAMES)))
    assert digest(outcome.checkpoint.weights) == digest(whole.checkpoint.weights)


def test_a_quorum_can_ask_for_a_share_of_the_patients(tmp_path: Path) -> None:
    class Broken(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            raise RuntimeError

    def sites() -> list[Hospital]:
        return [
            Broken(name="site-1", num_patients=60),
            Hospital(name="site-2", num_patients=30),
            Hospital(name="site-3", num_patients=10),
        ]

    outcome = Run(tmp_path, federation={"min_patient_share": 0.4}).on(network(*sites()))
    assert outcome.state is EndState.completed_with_missing_sites
    with pytest.raises(RunFailed, match="round 1: 2 of 3"):
        Run(tmp_path / "more", federation={"min_patient_share": 0.41}).on(network(*sites()))


def test_budgets_that_take_the_quorum_away_stop_the_run(tmp_path: Path) -> None:
    sites = [Hospital(name=n, max_rounds=1 if n != "site-3" else 99) for n in NAMES]
    outcome = Run(tmp_path, rounds=5, federation={"min_sites": 2}).on(network(*sites))
    assert outcome.state is EndState.stopped_by_budget
    assert outcome.checkpoint.round == 2
    last = outcome.checkpoint.history[-1]
    assert last["aggregated"] is False
    assert last["evaluation"] is None
    one = Run(tmp_path / "one", rounds=1).on(network(*(Hospital(name=n) for n in NAMES)))
    assert digest(outcome.checkpoint.weights) == digest(one.checkpoint.weights)
    # Gone on with, there is nothing to do, and nobody is waited for.
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    again = Run(tmp_path, rounds=5, checkpoint=kept, federation={"min_sites": 2}).on(network())
    assert again.state is EndState.stopped_by_budget


@pytest.mark.parametrize("reason", [Reason.model_mismatch, Reason.policy])
def test_sites_that_refuse_for_good_leave_and_too_few_fail(tmp_path: Path, reason: Reason) -> None:
    class Refusing(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            if request.round < 2:
                return reply
            return replace(reply, status=Status.refused, reason=reason, weights=None)

    two = Refusing(name="site-2")
    outcome = Run(tmp_path, rounds=4).on(
        network(Hospital(name="site-1"), two, Hospital(name="site-3"))
    )
    assert outcome.state is EndState.completed_with_missing_sites
    assert column(outcome, "site-2", "reason") == [None, reason, reason, reason]
    assert len(two.requests) == 2
    with pytest.raises(RunFailed, match=rf"too few sites .*site-1: {reason}"):
        Run(tmp_path / "all", rounds=4).on(network(*(Refusing(name=n) for n in NAMES)))


def test_a_stranger_is_reported_once_and_never_asked_to_train(tmp_path: Path) -> None:
    stranger = Hospital(name="site-9")
    task = Run(tmp_path)
    outcome = task.on(network(stranger, *(Hospital(name=name) for name in NAMES)))
    assert outcome.state is EndState.completed
    assert stranger.requests == []
    assert [e for e in task.events if e["event"] == "stranger"] == [
        {"event": "stranger", "site": "site-9", "problem": "not an approved site"}
    ]
    assert "site-9" not in outcome.checkpoint.history[0]["sites"]
    fair = Run(tmp_path / "fair").on(network(*(Hospital(name=name) for name in NAMES)))
    assert digest(outcome.checkpoint.weights) == digest(fair.checkpoint.weights)


def test_who_comes_later_under_a_sites_name_is_a_stranger(tmp_path: Path) -> None:
    hospitals = [Hospital(name=name) for name in NAMES]
    impostor = Hospital(name="site-1")
    grid = network(*hospitals)

    def joins(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 1:
            grid.nodes = {5: node(impostor), **grid.nodes}
        seen.append(event)

    seen: list[dict[str, Any]] = []
    outcome = Run(tmp_path, observe=joins).on(grid)
    assert outcome.state is EndState.completed
    assert impostor.requests == []
    assert [e["site"] for e in seen if e["event"] == "stranger"] == ["site-1"]


def test_a_site_that_changed_its_patients_is_a_stranger_after_a_restart(tmp_path: Path) -> None:
    Run(tmp_path, rounds=1).on(network(*(Hospital(name=name) for name in NAMES)))
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.patients == dict.fromkeys(NAMES, 100)
    changed = Hospital(name="site-2", num_patients=10**6)
    task = Run(tmp_path, rounds=2, checkpoint=kept, timeout_seconds=0.3)
    outcome = task.on(network(Hospital(name="site-1"), changed, Hospital(name="site-3")))
    assert changed.requests == []
    assert column(outcome, "site-2", "reason") == [None, "not_connected"]


def test_a_site_that_is_away_at_first_joins_when_it_comes(tmp_path: Path) -> None:
    hospitals = [Hospital(name=name) for name in NAMES]
    grid = network(*hospitals[:2])

    def joins(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 1:
            grid.nodes[13] = node(hospitals[2])

    outcome = Run(tmp_path, observe=joins, timeout_seconds=0.4).on(grid)
    assert outcome.state is EndState.completed_with_missing_sites
    assert column(outcome, "site-3", "status") == ["failed", "trained", "trained"]
    assert column(outcome, "site-3", "reason")[0] == "not_connected"
    # The recipe stays what it was, whoever joins.
    assert len({str(request.recipe) for h in hospitals for request in h.requests}) == 1


def test_a_restart_follows_the_same_recipe_whoever_is_there(tmp_path: Path) -> None:
    many = [Hospital(name=name, num_patients=10**5) for name in NAMES]
    first = Run(tmp_path, rounds=1).on(network(*many))
    kept = latest_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    rest = Run(tmp_path, rounds=2, checkpoint=kept, timeout_seconds=0.3).on(network(*many[:1]))
    assert rest.recipe == first.recipe
    assert rest.recipe.delta == pytest.approx((3 * 10**5) ** -1.1)


@pytest.mark.parametrize("rule", LateReplies)
def test_a_late_reply_is_reported_and_used_by_rule(tmp_path: Path, rule: LateReplies) -> None:
    """Site 3 misses the deadline of round 1, and is lost in round 2, when its reply arrives."""
    hospitals = [Hospital(name=name) for name in NAMES]
    grid = slow(*hospitals)
    grid.holds = lambda number, asked: number == 13
    grid.releases = lambda asked: asked == 2
    task = Run(tmp_path, rounds=2, timeout_seconds=0.5, federation={"late_replies": rule})
    outcome = task.on(grid)
    assert column(outcome, "site-3", "reason") == ["no_reply", "no_reply"]
    assert outcome.checkpoint.history[0]["late"] == []
    used = rule is LateReplies.use
    assert outcome.checkpoint.history[1]["late"] == [{"site": "site-3", "round": 1, "used": used}]
    assert {"event": "late", "site": "site-3", "round": 1} in task.events
    # What it had spent by then is known either way.
    assert column(outcome, "site-3", "epsilon") == [None, 1.0]
    first, second = hospitals[2].requests
    moved = {
        n: v + Hospital.update(hospitals[2], first)[n] - first.weights[n]
        for n, v in second.weights.items()
    }
    parts = [Hospital.update(hospitals[n], second) for n in (0, 1)] + [moved] * used
    for name, value in outcome.checkpoint.weights.items():
        np.testing.assert_allclose(value, np.mean([p[name] for p in parts], axis=0), rtol=1e-6)


def test_a_late_reply_never_counts_beside_one_in_time(tmp_path: Path) -> None:
    hospitals = [Hospital(name=name) for name in NAMES]
    grid = slow(*hospitals)
    grid.holds = lambda number, asked: number == 13 and asked == 1
    grid.releases = lambda asked: asked == 2
    outcome = Run(
        tmp_path, rounds=2, timeout_seconds=0.5, federation={"late_replies": LateReplies.use}
    ).on(grid)
    assert column(outcome, "site-3", "status") == ["failed", "trained"]
    assert [late["used"] for late in outcome.checkpoint.history[1]["late"]] == [False]
    second = [h.requests[1] for h in hospitals]
    parts = [Hospital.update(h, request) for h, request in zip(hospitals, second, strict=True)]
    for name, value in outcome.checkpoint.weights.items():
        np.testing.assert_allclose(value, np.mean([p[name] for p in parts], axis=0), rtol=1e-6)


def test_an_update_a_thousand_times_too_large_is_quarantined_and_its_spend_kept(
    tmp_path: Path,
) -> None:
    def grown(weights: Weights) -> Weights:
        return {name: value + np.float32(5.0) for name, value in weights.items()}

    class Still(Hospital):
        def update(self, request: TrainRequest) -> Weights:
            return {name: value + np.float32(1e-3) for name, value in request.weights.items()}

    class Jumping(Still):
        def update(self, request: TrainRequest) -> Weights:
            return grown(super().update(request))

    task = Run(tmp_path, rounds=2, config={})
    adam = {"config": {"training": TrainingConfig(optimizer="adam", learning_rate=1e-3)}}
    task = replace(task, **adam)
    outcome = task.on(network(Still(name="site-1"), Jumping(name="site-2"), Still(name="site-3")))
    assert column(outcome, "site-2", "reason") == ["too_large"] * 2
    assert column(outcome, "site-2", "epsilon") == [1.0, 2.0]
    assert column(outcome, "site-1", "status") == ["trained"] * 2
    assert "largest change 5" in column(outcome, "site-2", "problems")[0][0]


@pytest.mark.parametrize("every", [2, 3])
def test_the_model_is_looked_at_every_so_many_rounds_and_at_the_end(
    tmp_path: Path, every: int
) -> None:
    outcome = Run(tmp_path, rounds=4, federation={"evaluate_every": every}).on(
        network(*(Hospital(name=name) for name in NAMES))
    )
    looked = [record["evaluation"] is not None for record in outcome.checkpoint.history]
    assert looked == [number % every == 0 or number == 4 for number in range(1, 5)]


@pytest.mark.parametrize(
    "name", [StrategyName.fedadam, StrategyName.scaffold, StrategyName.fedavgm]
)
def test_a_run_cut_after_every_round_ends_with_the_same_bits(
    tmp_path: Path, name: StrategyName
) -> None:
    config = {"config": {"strategy": StrategyConfig(name=name)}}

    def hospitals() -> list[Hospital]:
        return [Hospital(name=name) for name in NAMES]

    whole = replace(Run(tmp_path / "whole", rounds=8), **config).on(network(*hospitals()))
    checkpoint: Checkpoint | None = None
    for after in range(1, 9):

        def cut(event: dict[str, Any], last: int = after) -> None:
            if event["event"] == "round" and event["round"] == last:
                raise PowerCut

        task = replace(Run(tmp_path, rounds=8, observe=cut), **config)
        if checkpoint is not None:
            task.checkpoint = checkpoint
        with pytest.raises(PowerCut):
            task.on(network(*hospitals()))
        checkpoint = latest_checkpoint(tmp_path / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.round == after
    assert checkpoint is not None
    assert digest(checkpoint.weights) == digest(whole.checkpoint.weights)


@pytest.mark.long
def test_two_hundred_rounds_hardly_grow_the_servers_memory(tmp_path: Path) -> None:
    """Between the second ten rounds and the last: below 5 %.

    Least resident memory of ten rounds each, since it swings with buffers that are in use just now.
    """
    memory: dict[int, int] = {}

    class Still(Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            self.requests.clear()  # the hospitals' memory is not the server's
            return reply

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            gc.collect()
            memory[event["round"]] = psutil.Process().memory_info().rss

    task = Run(tmp_path, rounds=200, observe=look)
    weights: Weights = {"w": np.zeros((1000, 1000), np.float32)}
    task.checkpoint = Checkpoint(run_id="r1", round=0, weights=weights)
    task = replace(task, config={"strategy": StrategyConfig(name=StrategyName.fedadam)})
    start = replace(task.start(), evaluate=lambda weights: {})
    sites = (Still(name=name, max_rounds=200) for name in NAMES)
    assert run(network(*sites), start).state is EndState.completed
    first = min(memory[number] for number in range(11, 21))
    last = min(memory[number] for number in range(191, 201))
    print(f"memory: {first / 1e6:.1f} MB in rounds 11 to 20, {last / 1e6:.1f} in 191 to 200")
    assert last < 1.05 * first
