"""Hospitals whose training is a small sum, networks in this process, and runs over both."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import build as build_client
from common import wire
from common.config import Config, FederationConfig, Mechanism, PrivacyConfig, TrainingConfig, Unit
from common.messages import Reason, SiteDescription, Status, TrainReply, TrainRequest, Weights
from common.privacy.keys import SiteKey
from common.privacy.statement import SpendStatement
from server.checkpoint import Checkpoint
from server.rounds import Outcome, Start, run

Node = Callable[[Message], Message | None]
NAMES = ("site-1", "site-2", "site-3")


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


class PowerCut(BaseException):
    """Ends a run between two rounds."""


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


@pytest.fixture
def server_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower stamps every message with the identity of the process that makes it."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def town(server_identity: None) -> SimpleNamespace:
    """Hospitals, networks that reach them, and runs over these."""
    return SimpleNamespace(
        NAMES=NAMES,
        Breaking=Breaking,
        Hospital=Hospital,
        Liar=Liar,
        PowerCut=PowerCut,
        Run=Run,
        column=column,
        digest=digest,
        initial=initial,
        network=network,
        node=node,
        on_train=on_train,
        slow=slow,
        statement=statement,
        timeless=timeless,
    )
