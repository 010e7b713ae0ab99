"""A simulation in this process: Flower's apps and the real sites, without Ray between them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

import configs
from client.app import build as build_client
from common.config import Job
from server.rounds import Outcome, Start, run
from simulations.classification import classify
from simulations.run_dir import RunDir
from simulations.scene import Scene
from simulations.simulate import of_synthesis
from simulations.sites import SimulatedSites, prepare
from simulations.synthesis import synthesize


class ThisProcess(Grid):
    """Nodes whose ClientApp answers as soon as it is asked."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        self._app = app
        self._num_nodes = num_nodes
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
        return range(1, self._num_nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers: list[str] = []
        for message in messages:
            number = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            node = message.metadata.dst_node_id
            about = {"partition-id": node - 1}
            context = Context(
                run_id=1, node_id=node, node_config=about, state=RecordDict(), run_config={}
            )
            self._replies[number] = self._app(copy.deepcopy(message), context)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(n) for n in sorted(set(message_ids) & set(self._replies))]


def _federate(starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
    return [run(ThisProcess(build_client(sites), len(sites.names)), start) for start in starts]


Simulate = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Runs a job in a folder with overrides; returns its events, the result in the last one."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def simulate(
        path: Path,
        *overrides: str,
        job: Job = Job.classify,
        federate: Callable[..., list[Outcome]] = _federate,
        observe: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> list[dict[str, Any]]:
        primary = "synthesize" if job is Job.synthesize else "config"
        config = configs.load([*overrides, f"run_dir={path}"], primary=primary)
        run_dir = RunDir(path=path)
        run_dir.work.mkdir(parents=True)
        if not run_dir.run_id.exists():
            run_dir.run_id.write_text(path.name)
        events: list[dict[str, Any]] = []

        def both(event: dict[str, Any]) -> None:
            events.append(event)
            observe(event)

        scene = Scene(
            config=of_synthesis(config) if job is Job.synthesize else config,
            run_dir=run_dir,
            hospitals=prepare(config, run_dir),
            observe=both,
            federate=federate,
        )
        (synthesize if job is Job.synthesize else classify)(scene)
        return events

    return simulate
