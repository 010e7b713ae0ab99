"""A real hospital with a tiny model, and a server that asks it by hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.secure_aggregation.secure_site import SecureSetup, SecureSite
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.messages import Recipe, TrainRequest
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.privacy.keys import SiteKey
from common.secure_aggregation.conversation import Question, SecureAnswer, Step
from common.secure_aggregation.mechanism import Mechanism, Parties, design
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.server_round import ServerRound
from common.secure_aggregation.task import terms_of
from common.secure_aggregation.terms import Terms
from common.seeds import SimulatedSeeds

NAMES = ("hospital-1", "hospital-2", "hospital-3")
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-3,
    sampling_rate=0.5,
    noise_multiplier=2.0,
    steps=1,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="sgd",
    learning_rate=0.5,
    physical_batch=8,
)
MODEL = SiteModel(
    config=ModelConfig(architecture="test_vit", patch_size=16),
    finetune=FinetuneConfig(mode=FinetuneMode.head),
    image_size=32,
    num_classes=2,
    seed=5,
)


def key_of(name: str) -> SiteKey:
    return SiteKey(hashlib.sha256(name.encode()).digest())


def cohort_of(seed: int) -> Cohort:
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(6), [1, 2, 3, 1, 2, 1])
    return Cohort(
        images=rng.random((10, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 10),
        patients=patients,
        num_patients=6,
        patient_ids=tuple(f"{seed}-{number}" for number in range(6)),
    )


def setup_of(name: str, folder: Path, model: SiteModel = MODEL) -> SiteSetup:
    cohort = cohort_of(NAMES.index(name))
    return SiteSetup(
        name=name,
        cohort=cohort,
        patient_hashes=patient_hashes(cohort.patient_ids, bytes(32)),
        ledger=folder / f"{name}.sqlite",
        replies=folder / name,
        budget=Budget(epsilon=50.0, delta=1e-3, accountant="rdp"),
        model=model,
        seeds=SimulatedSeeds(run_seed=1, site=name),
    )


@dataclass
class Consortium:
    """Three hospitals; ``ask`` puts one question to one of them."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    parties: Parties = field(default_factory=lambda: Parties(num_sites=3))
    noise: float = 2.0
    sites: dict[str, SecureSite] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roster = Roster.of({name: key_of(name).public_key for name in NAMES})
        for name in NAMES:
            self.open(name)

    def open(self, name: str, **changes: Any) -> SecureSite:
        """The hospital, as if its process were started again."""
        setup = SecureSetup(
            roster=self.roster,
            key=key_of(name),
            state=self.folder / name / "secure-round.state",
            **changes,
        )
        site = replace(setup_of(name, self.folder), **self.changes)
        self.sites[name] = SecureSite(Site(site), setup)
        return self.sites[name]

    def setup(self, name: str) -> SiteSetup:
        return setup_of(name, self.folder)

    def request(self, round_number: int = 1, **changes: Any) -> TrainRequest:
        model = MODEL.build()
        return TrainRequest(
            run_id="run",
            round=round_number,
            recipe=replace(RECIPE, **changes),
            frozen_sha256=models.frozen_sha256(model),
            weights=models.trainable_weights(model),
        )

    def mechanism(self) -> Mechanism:
        return design(
            noise_multiplier=self.noise,
            num_weights=sum(value.size for value in self.request().weights.values()),
            num_patients=18,
            sampling_rate=0.5,
            parties=self.parties,
        )

    def terms(self, request: TrainRequest) -> Terms:
        return terms_of(request, self.mechanism(), self.parties, self.roster)

    def ask(
        self, name: str, step: Step, body: bytes, request: TrainRequest, **changes: Any
    ) -> SecureAnswer:
        question = Question(
            step=step, terms=self.terms(request), mechanism=self.mechanism(), body=body
        )
        data = replace(question, **changes).to_bytes()
        sent = request if step is Step.masked else None
        return SecureAnswer.from_bytes(self.sites[name].answer(data, sent))

    def shares(self, request: TrainRequest) -> tuple[ServerRound, dict[str, bytes]]:
        """A round until sites are to send their masked vectors."""
        server = ServerRound(self.terms(request), self.roster)
        for name in NAMES:
            server.take_keys(name, self.ask(name, Step.keys, b"", request).body)
        keys = server.keys()
        for name in NAMES:
            server.take_shares(name, self.ask(name, Step.shares, keys, request).body)
        return server, server.shares()


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(folder=tmp_path)
