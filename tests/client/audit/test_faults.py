"""Faults that were planted, each through a seam; the audit must prove more than the claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.audit.audit import Audit, Effort, audit
from client.audit.game import Subject
from client.audit.system import System
from client.data.cohort import Cohort
from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine, Sums
from client.dp.loader import Loader
from client.dp.loss import ImageLosses, patient_loss
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds, Trainee, step_of, train_round
from client.site import Site
from client.site_setup import SiteSetup
from common.config import Precision, Unit
from common.messages import Recipe
from common.privacy import accountants
from common.privacy.calibration import calibrate
from common.privacy.events import Event, repeat, split
from common.seeds import SeedSource, SimulatedSeeds, SystemSeeds

EFFORT = Effort(num_canaries=400, num_ordinary=8, num_runs=4, num_lone_runs=8)
EFFORTS = {"many": EFFORT, "lone": replace(EFFORT, num_canaries=20, num_runs=2, num_lone_runs=240)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def subject(epsilon: float, *, rate: float = 0.25, rounds: int = 8, steps: int = 5) -> Subject:
    """A recipe calibrated for ``epsilon``; four images of each patient."""
    noise = calibrate(
        epsilon=epsilon,
        delta=1e-5,
        sampling_rate=rate,
        steps=rounds * steps,
        accountant=accountants.build("pld"),
    )
    recipe = Recipe(
        mechanism="dp_sgd",
        unit="patient",
        accountant="pld",
        delta=1e-5,
        sampling_rate=rate,
        noise_multiplier=noise,
        steps=steps,
        max_grad_norm=0.5,
        images_per_patient=4,
        optimizer="adam",
        learning_rate=1e-3,
        physical_batch=256,
    )
    return Subject(recipe=recipe, rounds=rounds, model=None)


def noise_times(factor: float) -> Callable[[Trainee, Cohort, Recipe, RoundSeeds], None]:
    def train(trainee: Trainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
        less = replace(recipe, noise_multiplier=recipe.noise_multiplier * factor)
        train_round(trainee, cohort, less, seeds)

    return train


def in_fixed_order(trainee: Trainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
    """Patients are shuffled once, and taken in that order in every round."""
    order = np.random.default_rng(0).permutation(cohort.num_patients)
    size = round(recipe.sampling_rate * cohort.num_patients)
    parameters = [p for p in trainee.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=recipe.learning_rate)
    expected = recipe.sampling_rate * cohort.num_patients
    step = step_of(trainee, optimizer, recipe, expected, seeds)
    loader = Loader.of(cohort, recipe, trainee.augmentation, None, 0)
    for number in range(recipe.steps):
        places = np.arange(number * size, (number + 1) * size) % cohort.num_patients
        rows = [np.flatnonzero(cohort.patients == patient) for patient in order[places]]
        step.step(loader.batches([images for images in rows if len(images)]))


class _ByBatch:
    """Clips what a whole batch adds up to, or its mean, as one."""

    def __init__(
        self, model: nn.Module, precision: Precision, losses_of: ImageLosses, *, mean: bool
    ) -> None:
        self._model, self._precision, self._losses_of = model, precision, losses_of
        self._mean = mean

    def clipped_sums(self, batch: PatientBatch, clipping: Clipping) -> Sums:
        divisor = batch.num_patients if self._mean else 1
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        loss = patient_loss(self._model, batch, self._precision, self._losses_of) / divisor
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        factor = clipping.factors(norm[None]) * divisor
        return [(p, g * factor) for p, g in zip(parameters, gradients, strict=True)]


def mean_of_batch(model: nn.Module, precision: Precision, losses_of: ImageLosses) -> _ByBatch:
    return _ByBatch(model, precision, losses_of, mean=True)


def sum_of_batch(model: nn.Module, precision: Precision, losses_of: ImageLosses) -> _ByBatch:
    return _ByBatch(model, precision, losses_of, mean=False)


class ByImage:
    """Takes every image for a patient."""

    def __init__(self, model: nn.Module, precision: Precision, losses_of: ImageLosses) -> None:
        self._engine = BookkeepingEngine(model, precision, losses_of)

    def clipped_sums(self, batch: PatientBatch, clipping: Clipping) -> Sums:
        num_images = len(batch.labels)
        alone = replace(batch, patients=torch.arange(num_images), num_patients=num_images)
        return self._engine.clipped_sums(alone, clipping)


class _HalfLedger:
    """Writes down half of the steps."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def __enter__(self) -> _HalfLedger:
        self._ledger.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ledger.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def reserve(self, *, events: Sequence[Event], **others: Any) -> Any:
        half = tuple(repeat(split(event)[0], split(event)[1] // 2) for event in events)
        return self._ledger.reserve(events=half, **others)


class _HalfCounted(SiteSetup):
    def open_ledger(self, unit: Unit) -> Any:
        return _HalfLedger(SiteSetup.open_ledger(self, unit))


def counting_half(setup: SiteSetup) -> Site:
    return Site(_HalfCounted(**{one.name: getattr(setup, one.name) for one in fields(setup)}))


@dataclass(frozen=True)
class _OneNoise:
    """The noise of every round is that of the first."""

    seeds: SimulatedSeeds

    def seed(self, round_number: int, purpose: str) -> int:
        return self.seeds.seed(1 if purpose == "noise" else round_number, purpose)


def one_noise(run_seed: int, site: str) -> SeedSource:
    return _OneNoise(SimulatedSeeds(run_seed=run_seed, site=site))


def one_seed(run_seed: int, site: str) -> SeedSource:
    del site
    return SimulatedSeeds(run_seed=run_seed, site="any")


# What is planted, where it is looked for, and with which game.
FAULTS: dict[str, tuple[System, Subject, str]] = {
    "no noise": (System(train=noise_times(1e-6)), subject(4), "many"),
    "half the noise": (System(train=noise_times(0.5)), subject(4), "many"),
    "a batch's mean clipped": (System(engine=mean_of_batch), subject(4), "many"),
    "a batch's sum clipped": (System(engine=sum_of_batch), subject(4, rate=1.0), "lone"),
    "images clipped": (System(engine=ByImage), subject(4), "many"),
    "fixed order": (System(train=in_fixed_order), subject(4, rate=0.1, steps=10), "many"),
    "half the steps counted": (System(site=counting_half), subject(8, steps=4), "many"),
    "noise of the first round": (System(seeds=one_noise), subject(1), "many"),
    "one seed at two sites": (System(seeds=one_seed), subject(1), "many"),
}


def found(system: System, on: Subject, game: str, seed: int = 7) -> Audit:
    return audit(on, effort=EFFORTS[game], seed=seed, system=system)


QUICK = ("half the noise", "images clipped", "half the steps counted")
LONG = [fault for fault in FAULTS if fault not in QUICK]


@pytest.mark.parametrize(
    "fault", [*QUICK, *(pytest.param(fault, marks=pytest.mark.long) for fault in LONG)]
)
def test_a_planted_fault_is_proved(fault: str) -> None:
    system, on, game = FAULTS[fault]
    result = found(system, on, game)
    assert result.passes_claim, f"the audit missed {fault}: {result}"


SETTINGS = list({(on, game): fault for fault, (_, on, game) in FAULTS.items()}.values())


@pytest.mark.long
@pytest.mark.parametrize("fault", SETTINGS)
def test_the_same_audit_finds_nothing_without_the_fault(fault: str) -> None:
    _, on, game = FAULTS[fault]
    result = found(System(), on, game)
    assert not result.passes_claim, result
    assert result.epsilon_lower_bound > 0.5 or on.recipe.noise_multiplier > 4  # epsilon 1


def test_a_hospitals_own_noise_is_sound_too() -> None:
    system = System(seeds=lambda _run, _site: SystemSeeds())
    result = found(system, subject(4), "many")
    assert 0.5 < result.epsilon_lower_bound <= result.epsilon_claimed
