"""A site's own memory bounds what is held at once, whatever generator is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.data.cohort import Cohort
from client.dp.loader import Loader
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds
from client.local_model import ModelMismatch, Surroundings
from client.synthesis.site_generator import SiteGenerator
from common.generators.blueprint import Blueprint
from common.generators.moments import MomentSettings
from common.generators.settings import GanSettings
from common.messages import Recipe

RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=1.0,
    noise_multiplier=1.0,
    steps=1,
    max_grad_norm=1.0,
    images_per_patient=1,
    optimizer="adam",
    learning_rate=1e-3,
    physical_batch=40,
)
SETTINGS = [GanSettings(width=1 / 32, generator_batch=4), MomentSettings()]


def cohort() -> Cohort:
    return Cohort(
        images=np.random.default_rng(0).random((40, 1, 32, 32), dtype=np.float32),
        labels=np.arange(40) % 2,
        patients=np.arange(40),
        num_patients=40,
        patient_ids=(),
    )


def largest_batch(
    settings: GanSettings | MomentSettings, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Of what one round holds at once of the patients."""
    sizes: list[int] = []
    make = Loader._batch

    def note(loader: Loader, group: list[np.ndarray]) -> PatientBatch:
        sizes.append(len(group))
        return make(loader, group)

    monkeypatch.setattr(Loader, "_batch", note)
    blueprint = Blueprint(settings=settings, image_size=32, num_classes=2)
    around = Surroundings(cohort=cohort(), memory_bytes=limit)
    training = SiteGenerator(blueprint=blueprint, seed=1).prepare(RECIPE, around)
    training.train(cohort(), RECIPE, RoundSeeds(sampling=1, noise=2))
    assert sum(sizes) == 40
    return max(sizes)


@pytest.mark.parametrize(
    ("settings", "limits"),
    [(SETTINGS[0], (1.6e6, 2.1e6)), (SETTINGS[1], (5e3, 1.2e4))],
    ids=["gan", "moments"],
)
def test_memory_bounds_what_is_held_at_once(
    settings: GanSettings | MomentSettings,
    limits: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    assert largest_batch(settings, None, monkeypatch) == 40
    bounded = [largest_batch(settings, limit, monkeypatch) for limit in limits]
    assert 1 <= bounded[0] < bounded[1] < 40


@pytest.mark.parametrize("settings", SETTINGS, ids=["gan", "moments"])
def test_less_than_one_image_is_refused(settings: GanSettings | MomentSettings) -> None:
    blueprint = Blueprint(settings=settings, image_size=32, num_classes=2)
    around = Surroundings(cohort=cohort(), memory_bytes=1e3)
    with pytest.raises(ModelMismatch, match="one image needs"):
        SiteGenerator(blueprint=blueprint, seed=1).prepare(RECIPE, around)
