from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from common import wire
from common.config import Config, FederationConfig, Mechanism, PrivacyConfig
from common.errors import RunFailed
from common.messages import SiteDescription
from server.app import build
from server.checkpoint import Checkpoint
from server.rounds import Outcome, Start


class OneNode(Grid):
    """A network with one site that says who it is."""

    def __init__(self) -> None:
        self.asked: list[Message] = []

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
        return [5]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(len(self.asked))
            self.asked.append(message)
        return [message.metadata.message_id for message in self.asked]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        content = wire.description_content(SiteDescription(site="site-1", num_patients=40))
        return [Message(content, reply_to=self.asked[int(number)]) for number in message_ids]


def start(folder: Path, *, num_sites: int) -> Start:
    return Start(
        config=Config(
            privacy=PrivacyConfig(mechanism=Mechanism.none),
            federation=FederationConfig(
                num_sites=num_sites,
                rounds=2,
                timeout_seconds=0.3,
                wait_seconds=0.3,
                min_sites=num_sites,
            ),
        ),
        checkpoint=Checkpoint(
            run_id="r1",
            round=2,
            weights={"w": np.zeros(1, np.float32)},
            history=(
                {"aggregated": True, "sites": {"site-1": {"status": "trained", "reason": None}}},
            ),
        ),
        sites=tuple(f"site-{n}" for n in range(1, num_sites + 1)),
        frozen_sha256="",
        checkpoints=folder,
        evaluate=lambda weights: {},
        observe=lambda event: None,
    )


def context() -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


@pytest.fixture(autouse=True)
def server_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_the_server_app_runs_the_rounds_and_hands_the_outcome_on(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    grid = OneNode()
    build([start(tmp_path, num_sites=1)], outcomes.append)(grid, context())
    (outcome,) = outcomes
    assert outcome.state == "completed"
    assert outcome.sites == {"site-1": SiteDescription(site="site-1", num_patients=40)}
    assert outcome.checkpoint.run_id == "r1"
    assert [message.metadata.message_type for message in grid.asked] == [wire.DESCRIBE]


def test_a_failed_run_has_no_outcome(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    with pytest.raises(RunFailed, match="1 of 2 sites"):
        build([start(tmp_path, num_sites=2)], outcomes.append)(OneNode(), context())
    assert not outcomes


def test_the_server_never_imports_what_reads_patients() -> None:
    """Nor the training engine; it knows no hospital's code at all."""
    check = (
        "import sys, server.app; "
        "print([name for name in sys.modules "
        "if name.split('.')[0] in {'client', 'pydicom', 'nibabel', 'opacus', 'torch'}])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
