"""Everything that trains, trained on another device: the same weights as on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import devices
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds
from client.frozen import FrozenBackbone
from client.local_model import LocalModel, Surroundings
from client.secure_aggregation.gradients import GivesGradients
from client.shared_model import SharedModel
from client.site import Site
from client.site_setup import SiteSetup
from client.synthesis.pretraining import Pretraining, pretrain
from client.synthesis.site_generator import SiteGenerator
from common import models
from common.config import AugmentationConfig, FinetuneConfig, FinetuneMode, ModelConfig, TaskKind
from common.generators.blueprint import Blueprint
from common.generators.settings import GanSettings
from common.messages import Recipe, Status, TrainRequest, Weights
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.seeds import SimulatedSeeds
from common.task import Task
from simulations.evaluation import HeldOut

CHANGED = AugmentationConfig(
    flip_horizontal=True, rotation_degrees=9, shift=0.1, brightness=0.1, contrast=0.1
)
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-3,
    sampling_rate=0.7,
    noise_multiplier=1.0,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="sgd",
    learning_rate=0.05,
    physical_batch=4,
)
SEEDS = RoundSeeds(sampling=3, noise=4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cohort(size: int = 32) -> Cohort:
    rng = np.random.default_rng(0)
    return Cohort(
        images=rng.random((12, 1, size, size), dtype=np.float32),
        labels=np.arange(12) % 2,
        patients=np.repeat(np.arange(6), 2),
        num_patients=6,
        patient_ids=tuple(map(str, range(6))),
    )


def classifier(architecture: str = "test_vit", mode: FinetuneMode = FinetuneMode.all) -> SiteModel:
    patch_size = 16 if architecture == "test_vit" else None
    return SiteModel(
        config=ModelConfig(architecture=architecture, patch_size=patch_size),
        finetune=FinetuneConfig(mode=mode),
        image_size=32,
        num_classes=2,
        seed=1,
    )


GAN = GanSettings(width=1 / 32, generator_batch=4, ema=0.9)


def generator(settings: GanSettings = GAN) -> SiteGenerator:
    return SiteGenerator(
        blueprint=Blueprint(settings=settings, image_size=32, num_classes=2), seed=1
    )


def trained(
    model: LocalModel, recipe: Recipe, folder: Path, device: torch.device, **owned: Any
) -> Weights:
    """What a site releases after one round there."""
    patients = cohort()
    site = Site(
        SiteSetup(
            name="hospital-1",
            cohort=patients,
            patient_hashes=patient_hashes(patients.patient_ids, bytes(32)),
            ledger=folder / "ledger.sqlite",
            replies=folder / "replies",
            budget=Budget(
                epsilon=np.inf if recipe.mechanism == "none" else 100.0,
                delta=1e-3,
                accountant="rdp",
            ),
            model=model,
            seeds=SimulatedSeeds(run_seed=1, site="hospital-1"),
            device=device,
            **owned,
        )
    )
    built = model.build()
    weights = models.trainable_weights(built)
    zero = {name: np.zeros_like(value) for name, value in weights.items()}
    reply = site.train(
        TrainRequest(
            run_id="run",
            round=1,
            recipe=recipe,
            frozen_sha256=models.frozen_sha256(built),
            weights=weights,
            **({"control": zero} if recipe.controlled else {}),
        )
    )
    assert (reply.status, reply.reason) == (Status.trained, None)
    assert reply.weights is not None
    assert any((reply.weights[name] != weights[name]).any() for name in weights)
    return reply.weights


def assert_same(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[torch.device]:
    """Where batches are moved to."""
    found: set[torch.device] = set()
    move = PatientBatch.to

    def to(batch: PatientBatch, device: torch.device) -> PatientBatch:
        found.add(device)
        return move(batch, device)

    monkeypatch.setattr(PatientBatch, "to", to)
    return found


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (classifier(), {}),
        (classifier(), {"clipping": "per_layer", "augmentation_multiplicity": 2}),
        (classifier(), {"clipping": "automatic", "proximal_mu": 0.1}),
        (classifier(), {"controlled": True, "momentum": 0.0}),
        (classifier(), {"mechanism": "none", "noise_multiplier": 0.0}),
        (classifier(mode=FinetuneMode.lora), {}),
        (classifier("convnext_atto"), {}),
        (SharedModel(classifier()), {}),
        (generator(), {"optimizer": "adam"}),
        (generator(), {"optimizer": "adam", "mechanism": "none", "noise_multiplier": 0.0}),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else type(value).__name__,
)
def test_a_round_of_a_site(
    model: LocalModel,
    changes: dict[str, Any],
    tmp_path: Path,
    elsewhere: torch.device,
    seen: set[torch.device],
) -> None:
    recipe = replace(RECIPE, **changes)
    views = {"augmentation": CHANGED} if isinstance(model, SiteModel) else {}
    here = trained(model, recipe, tmp_path / "here", devices.CPU, **views)
    assert seen == {devices.CPU}
    there = trained(model, recipe, tmp_path / "there", elsewhere, **views)
    assert elsewhere in seen
    assert_same(there, here)


def test_features_are_computed_there_and_the_head_here(
    elsewhere: torch.device, tmp_path: Path
) -> None:
    """Nothing of the model stays there: memory of a GPU is for hospitals that need it."""
    model = classifier(mode=FinetuneMode.head)
    here = trained(model, RECIPE, tmp_path / "here", devices.CPU, cache=tmp_path / "a")
    there = trained(model, RECIPE, tmp_path / "there", elsewhere, cache=tmp_path / "b")
    assert_same(there, here)
    (first,), (second,) = (list((tmp_path / name).iterdir()) for name in "ab")
    np.testing.assert_allclose(np.load(first), np.load(second), rtol=1e-4, atol=1e-5)
    around = Surroundings(cohort=cohort(), device=elsewhere)
    assert devices.of(model.prepare(RECIPE, around).model) == devices.CPU


def test_synthetic_images_join_there(elsewhere: torch.device, seen: set[torch.device]) -> None:
    recipe = replace(RECIPE, synthetic_ratio=1.0)
    found: list[Weights] = []
    for device in (devices.CPU, elsewhere):
        around = Surroundings(cohort=cohort(), pool=cohort(), device=device)
        training = classifier().prepare(recipe, around)
        training.train(cohort(), recipe, SEEDS)
        found.append(models.trainable_weights(training.model))
    assert_same(*found)
    assert elsewhere in seen


def test_gradients_for_a_secure_sum(elsewhere: torch.device) -> None:
    found: list[list[Weights]] = []
    for device in (devices.CPU, elsewhere):
        around = Surroundings(cohort=cohort(), device=device)
        training = classifier().prepare(RECIPE, around)
        assert isinstance(training, GivesGradients)
        gradients = list(training.patient_gradients(cohort(), RECIPE, SEEDS))
        assert {one.device for each in gradients for one in each.values()} == {device}
        found.append([{n: g.cpu().numpy() for n, g in each.items()} for each in gradients])
    assert len(found[0]) == len(found[1]) > 1
    for first, second in zip(*found, strict=True):
        assert_same(first, second)


def test_pretraining_goes_on_there(elsewhere: torch.device, tmp_path: Path) -> None:
    how = Pretraining(epochs=2, batch_size=6, learning_rate=0.01, seed=1, augmentation=CHANGED)
    found: list[Any] = []
    for device in (devices.CPU, elsewhere):
        for epochs in (1, 2):  # the second one begins with what the first one left
            model = classifier().build().to(device)
            state = tmp_path / device.type
            pretrain(
                model, cohort(), replace(how, epochs=epochs), state=state, observe=lambda _: None
            )
        begun = models.trainable_weights(classifier().build())
        moved = {name: w - begun[name] for name, w in models.trainable_weights(model).items()}
        found.append(np.concatenate([change.ravel() for change in moved.values()]))
    # where a gradient is nothing but rounding errors, Adam makes whole steps of them
    assert np.corrcoef(*found)[0, 1] > 0.999


def test_features_for_pretraining_are_computed_there(
    elsewhere: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[torch.device] = []
    compute = FrozenBackbone._computed

    def note(backbone: FrozenBackbone, images: Any, device: torch.device) -> Any:
        places.append(device)
        return compute(backbone, images, device)

    monkeypatch.setattr(FrozenBackbone, "_computed", note)
    as_it_is = AugmentationConfig()
    how = Pretraining(epochs=1, batch_size=6, learning_rate=0.01, seed=1, augmentation=as_it_is)
    model = classifier(mode=FinetuneMode.head).build().to(elsewhere)
    pretrain(model, cohort(), how, state=tmp_path / "state", observe=lambda _: None)
    assert places == [elsewhere]


@pytest.mark.parametrize("mode", [FinetuneMode.all, FinetuneMode.head])
def test_held_out_images_are_answered_there(mode: FinetuneMode, elsewhere: torch.device) -> None:
    task = Task(kind=TaskKind.binary, names=("malignant",))
    found: list[Any] = []
    for device in (devices.CPU, elsewhere):
        model = classifier(mode=mode).build()
        held_out = HeldOut(model, task, cohort(), device=device)
        found.append(held_out.scores(models.trainable_weights(classifier(mode=mode).build())))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
