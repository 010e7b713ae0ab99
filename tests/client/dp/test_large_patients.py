"""Whether a round fits into memory must not depend on who is drawn: the server would see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.data.cohort import Cohort
from client.dp import engines
from client.dp.loader import Loader, PoissonDraws
from client.dp.training import RoundSeeds, Trainee, train_round
from client.local_model import LocalModel, Surroundings
from client.out_of_memory import train_within_memory
from client.secure_aggregation.gradients import patient_gradients
from client.synthesis.site_generator import SiteGenerator
from common.config import AugmentationConfig, EngineName, Precision
from common.generators.blueprint import Blueprint
from common.generators.moments import MomentSettings
from common.generators.settings import GanSettings
from common.messages import Recipe

SEEDS = RoundSeeds(sampling=1, noise=2)
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=1.0,
    noise_multiplier=0.1,
    steps=1,
    max_grad_norm=0.2,
    images_per_patient=30,
    optimizer="sgd",
    learning_rate=0.1,
    physical_batch=64,
    augmentation_multiplicity=20,
)
ALL_AT_ONCE = replace(RECIPE, physical_batch=10_000)


def make_cohort(counts: tuple[int, ...] = (1, 30, 2), size: int = 8) -> Cohort:
    rng = np.random.default_rng(0)
    num_images = sum(counts)
    return Cohort(
        images=rng.random((num_images, 1, size, size), dtype=np.float32),
        labels=rng.integers(0, 2, num_images),
        patients=np.repeat(np.arange(len(counts)), counts),
        num_patients=len(counts),
        patient_ids=(),
    )


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 2)
    )


def hold_at_most(module: nn.Module, num_images: int) -> None:
    """Memory for so many images and no more."""

    def refuse(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > num_images:
            raise torch.OutOfMemoryError

    module.register_forward_pre_hook(refuse)


def weights_after(
    train: Callable[[Recipe], None], model: nn.Module, recipe: Recipe
) -> torch.Tensor:
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train_within_memory(train, recipe, start_over=lambda: model.load_state_dict(start))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert not torch.equal(
        after, torch.cat([start[n].flatten() for n, _ in model.named_parameters()])
    )
    return after


def classifier_after(
    recipe: Recipe, *, fits: int | None, cohort: Cohort, augmentation: AugmentationConfig
) -> torch.Tensor:
    model = make_model()
    engine = None
    if recipe.private:
        precision = Precision(recipe.precision)
        engine = engines.build(EngineName(recipe.engine), model, precision)
    if fits is not None:
        hold_at_most(model, fits)
    trainee = Trainee(model=model, engine=engine, augmentation=augmentation)
    return weights_after(lambda r: train_round(trainee, cohort, r, SEEDS), model, recipe)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # Opacus, of vmap
@pytest.mark.parametrize("fits", [1, 7])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clipping": "automatic"},
        {"clipping": "per_layer"},
        {"mechanism": "none", "noise_multiplier": 0.0},
        {"engine": "opacus_hooks"},
        {"engine": "opacus_functorch"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_a_round_fits_whoever_is_drawn_and_is_the_same(changes: dict[str, Any], fits: int) -> None:
    changed = replace(RECIPE, **changes)
    still = AugmentationConfig()
    found = classifier_after(changed, fits=fits, cohort=make_cohort(), augmentation=still)
    roomy = replace(changed, physical_batch=10_000)
    want = classifier_after(roomy, fits=None, cohort=make_cohort(), augmentation=still)
    moved = want - torch.cat([p.detach().flatten() for p in make_model().parameters()])
    tolerance = 1e-4 if changed.precision == "fp32" else 0.02
    assert float((found - want).norm()) <= tolerance * float(moved.norm())


@pytest.mark.parametrize("counts", [(1,), (1, 30), (2, 2, 2)], ids=str)
def test_a_round_that_fits_one_image_fits_every_cohort(counts: tuple[int, ...]) -> None:
    flips = AugmentationConfig(flip_horizontal=True, rotation_degrees=20.0)
    classifier_after(RECIPE, fits=1, cohort=make_cohort(counts), augmentation=flips)


def test_many_views_of_one_patient_are_never_in_memory_together() -> None:
    """30 images x 1000 views x 8 x 8 pixels would be 7.7 MB; so is a copy of the patient's rows."""
    recipe = replace(RECIPE, augmentation_multiplicity=1000, physical_batch=1)
    cohort = make_cohort((30,))
    loader = Loader.of(cohort, recipe, AugmentationConfig(flip_horizontal=True), None, 0)
    chosen = PoissonDraws(cohort, recipe, np.random.default_rng(0)).draw()
    (patient,) = loader.batches(chosen)
    num_images = 0
    for piece, share in patient.pieces():
        assert piece.images.untyped_storage().nbytes() == 4 * 64
        assert share == pytest.approx(1 / 30_000)
        num_images += len(piece.labels)
    assert num_images == 30_000


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
@pytest.mark.parametrize("fits", [1, 7])
def test_gradients_for_a_secure_sum_fit_too(fits: int, clipping: str) -> None:
    found: list[list[torch.Tensor]] = []
    for most, recipe in ((fits, RECIPE), (None, ALL_AT_ONCE)):
        model = make_model()
        trainee = Trainee(model=model, engine=engines.build(EngineName.bookkeeping, model))
        if most is not None:
            hold_at_most(model, most)
        each: list[torch.Tensor] = []

        def gradients(
            asked: Recipe, trainee: Trainee = trainee, each: list[torch.Tensor] = each
        ) -> None:
            some = patient_gradients(trainee, make_cohort(), asked, SEEDS)
            each[:] = [torch.cat([g.flatten() for g in one.values()]) for one in some]

        train_within_memory(gradients, replace(recipe, clipping=clipping), start_over=each.clear)
        assert len(each) == 3
        assert all(float(one.norm()) <= RECIPE.max_grad_norm * (1 + 1e-5) for one in each)
        found.append(each)
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


GENERATORS = {
    "gan": GanSettings(width=1 / 32, generator_batch=1),
    "hinge": GanSettings(width=1 / 32, generator_batch=1, loss="hinge"),
    "moments": MomentSettings(),
}


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generators_round_fits_too(kind: str, mechanism: str) -> None:
    recipe = replace(
        RECIPE, mechanism=mechanism, optimizer="adam", augmentation_multiplicity=2, physical_batch=8
    )
    cohort = make_cohort(size=32)
    local: LocalModel = SiteGenerator(
        blueprint=Blueprint(settings=GENERATORS[kind], image_size=32, num_classes=2), seed=1
    )
    training = local.prepare(recipe, Surroundings(cohort=cohort))
    model = training.model
    hold_at_most(getattr(model, "discriminator", model), 1)
    after = weights_after(lambda r: training.train(cohort, r, SEEDS), model, recipe)
    assert bool(torch.isfinite(after).all())
    if kind != "moments":
        return
    roomy = local.prepare(recipe, Surroundings(cohort=cohort))
    roomy.train(cohort, replace(recipe, physical_batch=10_000), SEEDS)
    want = torch.cat([p.detach().flatten() for p in roomy.model.parameters()])
    assert float((after - want).norm()) <= 1e-4 * float(want.norm())
