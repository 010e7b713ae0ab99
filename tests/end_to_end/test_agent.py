"""A hospital's agent as it runs there: a process of its own, from ``site.yaml`` to its log."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_files

import configs
from client.agent.forwarder import AgentSite
from client.classifier import SiteModel
from common import models
from common.messages import Reason, Recipe, Status, TrainRequest
from common.privacy.statement import SpendStatement, check_statement
from common.seeds import derive_seed

SETTINGS = [
    "model.architecture=test_vit",
    "finetune=head",
    "data.image_size=32",
    "data.phantom.size=32",
    "data.phantom.num_train_per_site=12",
    "data.phantom.num_val=8",
    "data.phantom.num_test=8",
    "federation.num_sites=2",
]
SITE = f"""\
schema: fedward.site/1
name: hospital-a
socket: agent.sock
policy: policy.yaml
state: state
settings: {json.dumps(SETTINGS)}
records_of: hospital-1
"""
POLICY = """\
schema: fedward.policy/1
studies:
  phantom: {epsilon: 2.5, delta: 1e-3, accountant: rdp}
smallest_noise_multiplier: 1.0
smallest_expected_batch: 3
largest_sampling_rate: 0.5
largest_steps: 4
models: [test_vit]
"""
PROJECT = """\
[project]
name = "fedward-app"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "consortium"
[tool.flwr.app.components]
serverapp = "run:app"
clientapp = "client.app:app"
"""
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-3,
    sampling_rate=0.5,
    noise_multiplier=2.0,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="adam",
    learning_rate=0.01,
    physical_batch=8,
)


@dataclass(kw_only=True)
class Hospital:
    """A folder, and the agent that runs in it."""

    folder: Path
    bundle: str = ""
    process: subprocess.Popen[bytes] | None = None

    def fedward(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, "site", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def write_policy(self, text: str = POLICY) -> None:
        path = self.folder / "policy.yaml"
        path.write_text(text)
        path.chmod(0o644)

    def start(self) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "site", "serve"], cwd=self.folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 300
        while True:
            assert self.process.poll() is None, (self.folder / "agent.log").read_text()
            assert time.monotonic() < deadline, "the agent did not start"
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.folder / "agent.sock")) == 0:
                    return
            time.sleep(0.2)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=120)

    def site(self) -> AgentSite:
        return AgentSite(socket=self.folder / "agent.sock", bundle=self.bundle)

    def log(self) -> list[dict[str, Any]]:
        said = self.fedward("log", "state/audit.sqlite", "--json")
        return [json.loads(line) for line in said.splitlines()]


COMMAND = [sys.executable, "-P", "-c", "from simulations.cli import main; main()"]


@pytest.fixture
def hospital(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospital]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # a short path: a Unix socket's has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="fw-") as name:
        found = Hospital(folder=Path(name))
        (found.folder / "site.yaml").write_text(SITE)
        found.write_policy()
        files: dict[str, bytes | Path] = {
            "pyproject.toml": PROJECT.encode(),
            "run.py": b"app = None\n",
        }
        with warnings.catch_warnings():  # Flower asks pathspec for what it will drop
            warnings.simplefilter("ignore", DeprecationWarning)
            (found.folder / "app.fab").write_bytes(build_fab_from_files(files)[0])
        found.bundle = json.loads(found.fedward("inspect", "app.fab", "--json"))["sha256"]
        found.fedward("approve", found.bundle)
        yield found
        if found.process is not None and found.process.poll() is None:
            found.process.kill()
            found.process.wait()


def make_request(number: int, **changes: Any) -> TrainRequest:
    """What a server of the same configuration asks."""
    config = configs.load(SETTINGS)
    model = SiteModel(
        config=config.model,
        finetune=config.finetune,
        image_size=config.data.image_size,
        num_classes=2,
        seed=derive_seed(config.seed, "model"),
    ).build()
    return TrainRequest(
        run_id="run-1",
        round=number,
        recipe=replace(RECIPE, **changes),
        frozen_sha256=models.frozen_sha256(model),
        weights=models.trainable_weights(model),
    )


def test_an_agent_lives_through_rounds_a_kill_a_changed_policy_and_a_spent_budget(
    hospital: Hospital,
) -> None:
    hospital.start()
    assert (hospital.folder / "state").stat().st_mode & 0o077 == 0
    assert hospital.site().describe().site == "hospital-a"
    first = hospital.site().train(make_request(1))
    assert first.status is Status.trained, first.reason

    assert "another agent works with it" in hospital.fedward("serve", code=2)
    hospital.stop(signal.SIGKILL)
    hospital.start()
    again = hospital.site().train(make_request(1))
    assert again.weights is not None
    assert first.weights is not None
    assert models.weights_sha256(again.weights) == models.weights_sha256(first.weights)
    assert again.spend == first.spend

    assert hospital.site().train(make_request(2, noise_multiplier=0.9)).reason is Reason.weak_noise
    hospital.write_policy(POLICY.replace("noise_multiplier: 1.0", "noise_multiplier: much"))
    assert hospital.site().train(make_request(2)).reason is Reason.policy_unreadable
    hospital.write_policy()

    replies = [hospital.site().train(make_request(number)) for number in range(2, 6)]
    kinds = [(reply.status, reply.reason) for reply in replies]
    assert set(kinds) == {(Status.trained, None), (Status.refused, Reason.budget_exceeded)}
    assert kinds == sorted(kinds, key=lambda kind: kind[0] is Status.refused)
    statements = [SpendStatement.from_dict(r.spend) for r in (first, *replies) if r.spend]
    for before, after in itertools.pairwise(statements):
        assert check_statement(after, public_key=before.public_key, previous=before) == ()
    assert statements[-1].epsilon <= 2.5

    status = json.loads(hospital.fedward("status", "--json", "--last", "0"))
    assert status["cohorts"][0]["epsilon"] == pytest.approx(statements[-1].epsilon)
    assert [one["decision"] for one in status["rounds"]][:4] == [
        *("trained", "trained", "refused", "refused")
    ]
    assert hospital.stop() == 0
    assert not (hospital.folder / "agent.sock").exists()
    rows = hospital.log()
    assert rows[-1]["kind"] == "agent_stopped"
    changes = [row["readable"] for row in rows if row["kind"] == "policy_changed"]
    assert changes[-2:] == [False, True]
    asked = sum(row["kind"] == "asked" for row in rows)
    assert asked == sum(row["kind"] == "answered" for row in rows)
    said = (hospital.folder / "agent.log").read_text()
    assert "Traceback" not in said, said
