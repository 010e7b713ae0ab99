"""A small real site with an agent around it: phantomless images, a tiny model, real files."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_files

from client.agent import schema, service
from client.agent.agent import Agent, HeldSite, Sums
from client.agent.approval import Approvals
from client.agent.audit import AuditLog, AuditReading, read
from client.agent.forwarder import AgentSite
from client.agent.rules import Work
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.secure_aggregation.secure_site import SecureSetup, SecureSite
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.messages import Recipe, TrainRequest
from common.privacy.book import LedgerBook
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.secure_aggregation import roster_file
from common.secure_aggregation.conversation import Question, SecureAnswer, Step
from common.secure_aggregation.mechanism import Mechanism, Parties, design
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.task import terms_of
from common.secure_aggregation.terms import Terms
from common.seeds import SeedSource, SimulatedSeeds, SystemSeeds

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


def make_cohort(seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(6), [1, 2, 3, 1, 2, 1])
    return Cohort(
        images=rng.random((10, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 10),
        patients=patients,
        num_patients=6,
        patient_ids=tuple(f"PATIENT-{6 * seed + number}-MEIER" for number in range(6)),
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
    sums: Sums | None = None

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
            sums=self.sums,
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


@contextmanager
def open_place(
    name: str = "hospital-1", *, seed: int = 0, seeds: SeedSource | None = None
) -> Iterator[Place]:
    """A hospital in a folder of its own, with one approved bundle."""
    # a short path: a Unix socket's has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="fw-") as path:
        folder = Path(path)
        cohort = make_cohort(seed)
        key = LedgerBook.at(folder / "ledgers").key
        audit = AuditLog(folder / "audit.sqlite", key=key)
        approvals = Approvals(folder=folder / "bundles", key=key)
        bundle = approvals.look_at(make_fab("app = 1\n"))
        approvals.approve(bundle.sha256, audit)
        site = Site(
            SiteSetup(
                name=name,
                cohort=cohort,
                patient_hashes=patient_hashes(cohort.patient_ids, key.cohort_key),
                ledger=folder / "unused.sqlite",
                book=folder / "ledgers",
                replies=folder / "replies",
                budget=Budget(epsilon=1e-300, delta=1e-12),
                model=MODEL,
                seeds=seeds or SystemSeeds(),
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
        try:
            yield found
        finally:
            audit.close()


@pytest.fixture
def place() -> Iterator[Place]:
    with open_place() as found:
        yield found


SECURE_POLICY = (
    POLICY.replace("epsilon: 50.0", "epsilon: 50.0, epsilon_alone: 200.0")
    + """\
trust: {accepted: [secure_aggregation], least_sites: 4, least_colluders: 1}
"""
)
HOSPITALS = tuple(f"hospital-{number}" for number in range(1, 5))


@dataclass
class Town:
    """Four hospitals with agents that have pinned one roster, and a server that asks by hand."""

    places: dict[str, Place]
    roster: Roster
    parties: Parties = field(
        default_factory=lambda: Parties(num_sites=4, max_dropouts=1, max_colluders=1)
    )
    heard: list[bytes] = field(default_factory=list[bytes])

    def request(self, number: int = 1, **changes: Any) -> TrainRequest:
        return make_request(number, **{"steps": 1, "optimizer": "sgd", **changes})

    def mechanism(self) -> Mechanism:
        return design(
            noise_multiplier=RECIPE.noise_multiplier,
            num_weights=sum(value.size for value in make_request().weights.values()),
            num_patients=24,
            sampling_rate=RECIPE.sampling_rate,
            parties=self.parties,
        )

    def terms(self, request: TrainRequest) -> Terms:
        return terms_of(request, self.mechanism(), self.parties, self.roster)

    def ask(self, name: str, step: Step, body: bytes, request: TrainRequest) -> SecureAnswer:
        """Through the hospital's socket, as a bundle's process would."""
        mechanism, terms = self.mechanism(), self.terms(request)
        question = Question(step=step, terms=terms, mechanism=mechanism, body=body)
        place = self.places[name]
        stub = AgentSite(socket=place.socket, bundle=place.bundle)
        said = stub.answer(question.to_bytes(), request if step is Step.masked else None)
        self.heard.append(said)
        return SecureAnswer.from_bytes(said)

    def setup(self, name: str) -> SiteSetup:
        site = self.places[name].site
        assert isinstance(site, Site)
        return site._setup


def _sums(place: Place) -> Sums:
    """As `client.agent.hospital.Hospital.sums`, of a site without a ``site.yaml``."""
    site = place.site
    assert isinstance(site, Site)

    def part(roster: Roster) -> SecureSite:
        state = place.folder / "secure-round.state"
        return SecureSite(site, SecureSetup(roster=roster, key=place.approvals.key, state=state))

    return Sums(roster=place.folder / "roster.json", part=part)


@pytest.fixture
def town() -> Iterator[Town]:
    with ExitStack() as stack:
        places = {
            name: stack.enter_context(
                open_place(name, seed=number, seeds=SimulatedSeeds(run_seed=7, site=name))
            )
            for number, name in enumerate(HOSPITALS)
        }
        keys = {name: place.approvals.key.public_key for name, place in places.items()}
        pinned = roster_file.make("north", keys)
        for place in places.values():
            (place.folder / "roster.json").write_text(pinned.dumps())
            place.sums = _sums(place)
            place.write_policy(SECURE_POLICY)
        yield Town(places=places, roster=pinned.roster)


@pytest.fixture
def secure_policy() -> str:
    return SECURE_POLICY


@pytest.fixture
def fab() -> Callable[..., bytes]:
    return make_fab


@pytest.fixture
def request_of() -> Callable[..., TrainRequest]:
    return make_request


@pytest.fixture
def policy_text() -> str:
    return POLICY
