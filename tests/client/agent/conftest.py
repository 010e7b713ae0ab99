"""A small real site with an agent around it: phantomless images, a tiny model, real files."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_files

from client.agent import schema, service
from client.agent.agent import Agent, HeldSite
from client.agent.approval import Approvals
from client.agent.audit import AuditLog, AuditReading, read
from client.agent.forwarder import AgentSite
from client.agent.rules import Work
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.site import Site, SiteSetup
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.messages import Recipe, TrainRequest
from common.privacy.book import LedgerBook
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.seeds import SystemSeeds

POLICY = """\
schema: fedward.policy/1
paused: false
hours: []
studies:
  phantom: {epsilon: 50.0, delta: 1e-3, accountant: rdp}
smallest_noise_multiplier: 1.0
smallest_expected_batch: 2
largest_sampling_rate: 0.5
largest_steps: 10
models: ["test_*"]
generators: false
metrics: {leave: off}
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
MODEL = SiteModel(
    config=ModelConfig(architecture="test_vit", patch_size=16),
    finetune=FinetuneConfig(mode=FinetuneMode.head),
    image_size=32,
    num_classes=2,
    seed=5,
)
PROJECT = """\
[project]
name = "fedward-app"
version = "{version}"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "consortium"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "run:app"
clientapp = "run:app"
"""


def make_fab(code: str, version: str = "1.0.0", **more: str) -> bytes:
    """A bundle as Flower itself builds it."""
    files: dict[str, bytes | Path] = {
        "pyproject.toml": PROJECT.format(version=version).encode(),
        "run.py": code.encode(),
        **{f"{name}.py": text.encode() for name, text in more.items()},
    }
    with warnings.catch_warnings():  # Flower asks pathspec for what it will drop
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_fab_from_files(files)[0]


def make_request(round_number: int = 1, *, run_id: str = "run", **changes: Any) -> TrainRequest:
    model = MODEL.build()
    return TrainRequest(
        run_id=run_id,
        round=round_number,
        recipe=replace(RECIPE, **changes),
        frozen_sha256=models.frozen_sha256(model),
        weights=models.trainable_weights(model),
    )


def make_cohort() -> Cohort:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(6), [1, 2, 3, 1, 2, 1])
    return Cohort(
        images=rng.random((10, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 10),
        patients=patients,
        num_patients=6,
        patient_ids=tuple(f"PATIENT-{number}-MEIER" for number in range(6)),
    )


@dataclass(kw_only=True)
class Place:
    """A hospital's folder, its agent and what a test may turn."""

    folder: Path
    bundle: str
    site: HeldSite
    work: Work
    approvals: Approvals
    audit: AuditLog
    now: datetime
    gate_uid: int | None = None
    agent: Agent | None = None

    @property
    def policy(self) -> Path:
        return self.folder / "policy.yaml"

    @property
    def socket(self) -> Path:
        return self.folder / "agent.sock"

    def write_policy(self, text: str = POLICY) -> None:
        self.policy.write_text(text)
        self.policy.chmod(0o644)

    def start(self, site: HeldSite | None = None) -> Agent:
        self.agent = Agent(
            site=site or self.site,
            work=self.work,
            policy=self.policy,
            approvals=self.approvals,
            audit=self.audit,
            gate_uid=self.gate_uid,
            now=lambda: self.now,
        )
        return self.agent

    @contextmanager
    def served(self, site: HeldSite | None = None) -> Iterator[AgentSite]:
        """The agent behind a real socket, and what asks it."""
        door = service.listen(self.socket)
        most = schema.most_bytes(make_request().weights)
        server = service.server(self.start(site), most_bytes=most)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield AgentSite(socket=self.socket, bundle=self.bundle)
        finally:
            server.should_exit = True
            thread.join()
            door.close()

    def log(self) -> AuditReading:
        found = read(
            self.folder / "audit.sqlite",
            public_key=self.approvals.key.public_key,
            ledgers=self.folder / "ledgers",
        )
        assert not found.problems
        return found

    def rows(self, kind: str) -> list[dict[str, Any]]:
        return [r.to_dict() for r in self.log().records if r.kind.value == kind]

    def requests_charged(self) -> int:
        assert isinstance(self.site, Site)
        setup = self.site._setup
        with setup.open_ledger(setup.budget.unit) as ledger:
            return len(ledger.entries())


@pytest.fixture
def place() -> Iterator[Place]:
    # a short path: a Unix socket's has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="fw-") as name:
        folder = Path(name)
        cohort = make_cohort()
        key = LedgerBook.at(folder / "ledgers").key
        audit = AuditLog(folder / "audit.sqlite", key=key)
        approvals = Approvals(folder=folder / "bundles", key=key)
        bundle = approvals.look_at(make_fab("app = 1\n"))
        approvals.approve(bundle.sha256, audit)
        site = Site(
            SiteSetup(
                name="hospital-1",
                cohort=cohort,
                patient_hashes=patient_hashes(cohort.patient_ids, key.cohort_key),
                ledger=folder / "unused.sqlite",
                book=folder / "ledgers",
                replies=folder / "replies",
                budget=Budget(epsilon=1e-300, delta=1e-12),
                model=MODEL,
                seeds=SystemSeeds(),
                study="phantom",
            )
        )
        found = Place(
            folder=folder,
            bundle=bundle.sha256,
            site=site,
            work=Work(
                study="phantom",
                model="test_vit",
                generator=False,
                num_patients=cohort.num_patients,
                num_images=len(cohort.labels),
            ),
            approvals=approvals,
            audit=audit,
            now=datetime(2026, 3, 2, 12, 0, tzinfo=UTC),
        )
        found.write_policy()
        yield found
        audit.close()


@pytest.fixture
def fab() -> Callable[..., bytes]:
    return make_fab


@pytest.fixture
def request_of() -> Callable[..., TrainRequest]:
    return make_request


@pytest.fixture
def policy_text() -> str:
    return POLICY
