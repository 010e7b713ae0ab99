"""One release of features: what it is, what a patient can change, what is added."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from client.data.cohort import Cohort
from client.dp.training import RoundSeeds
from client.synthesis.kernel import KernelTrainee, kernel_engine, train_kernel_round
from common.errors import UsageError
from common.generators.moments import MomentGenerator, MomentSettings, build
from common.messages import Recipe


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_cohort(counts: list[int], seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    num_images = sum(counts)
    return Cohort(
        images=rng.random((num_images, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, num_images),
        patients=np.repeat(np.arange(len(counts)), counts),
        num_patients=len(counts),
        patient_ids=tuple(f"p{number}" for number in range(len(counts))),
    )


def make_recipe(**changes: object) -> Recipe:
    base = Recipe(
        mechanism="dp_sgd",
        unit="patient",
        accountant="pld",
        delta=1e-5,
        sampling_rate=1.0,
        noise_multiplier=1.0,
        steps=1,
        max_grad_norm=1.0,
        images_per_patient=100,
        optimizer="adam",
        learning_rate=1e-3,
        physical_batch=8,
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def release(
    cohort: Cohort, recipe: Recipe, *, seeds: tuple[int | None, int | None] = (1, 2)
) -> tuple[MomentGenerator, Tensor]:
    model = build(MomentSettings(), image_size=32, num_classes=2)
    engine = kernel_engine(model, recipe) if recipe.private else None
    with torch.no_grad():
        model.moments.fill_(7.0)  # of a round before: it must not matter
    trainee = KernelTrainee(model=model, engine=engine)
    train_kernel_round(trainee, cohort, recipe, RoundSeeds(sampling=seeds[0], noise=seeds[1]))
    return model, model.moments.detach().double().clone()


def mean_of_patients(model: MomentGenerator, cohort: Cohort) -> Tensor:
    """The definition: the mean over patients of the mean over their images."""
    features = model.features(torch.from_numpy(cohort.images) * 2 - 1).double()
    total = torch.zeros(2, features.shape[1], dtype=torch.float64)
    for patient in range(cohort.num_patients):
        rows = np.flatnonzero(cohort.patients == patient)
        for row in rows:
            total[cohort.labels[row]] += features[row] / len(rows)
    return total / cohort.num_patients


NEARLY_NONE = 1e-6


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
@pytest.mark.parametrize("physical_batch", [1, 5, 100])
def test_without_noise_it_is_the_mean_over_patients(mechanism: str, physical_batch: int) -> None:
    cohort = make_cohort([1, 3, 2, 1, 4])
    recipe = make_recipe(
        mechanism=mechanism,
        noise_multiplier=NEARLY_NONE if mechanism == "dp_sgd" else 0.0,
        physical_batch=physical_batch,
    )
    model, found = release(cohort, recipe)
    assert torch.allclose(found, mean_of_patients(model, cohort), atol=1e-5)


@pytest.mark.parametrize("clip", [1.0, 0.01])
def test_one_patient_moves_the_sum_by_at_most_the_clipping_norm(clip: float) -> None:
    cohort = make_cohort([2, 5, 1])
    loud = replace(cohort, images=cohort.images.copy())
    loud.images[cohort.patients == 1] = 1e4
    keep = cohort.patients != 1
    neighbour = replace(
        cohort,
        images=cohort.images[keep],
        labels=cohort.labels[keep],
        patients=cohort.patients[keep],
    )
    recipe = make_recipe(noise_multiplier=NEARLY_NONE, max_grad_norm=clip)
    sums = [release(data, recipe)[1] * 3 for data in (loud, neighbour)]
    moved = float((sums[0] - sums[1]).norm())
    assert 0.3 * clip < moved <= clip * (1 + 1e-3)


def scale_fits(noise: Tensor, deviation: float) -> bool:
    """Two-sided chi-square test at five standard errors."""
    ratio = float(noise.square().mean()) / deviation**2
    return abs(ratio - 1) < 5 * math.sqrt(2 / noise.numel())


@pytest.mark.parametrize(("sigma", "clip"), [(1.0, 1.0), (4.0, 0.5)])
@pytest.mark.parametrize("seed", [2, None])
def test_noise_has_the_claimed_scale_and_is_added_once(
    sigma: float, clip: float, seed: int | None
) -> None:
    cohort = make_cohort([1, 2, 1, 1])
    recipe = make_recipe(noise_multiplier=sigma, max_grad_norm=clip, physical_batch=1)
    quiet = release(cohort, replace(recipe, noise_multiplier=NEARLY_NONE))[1]
    noises = [(release(cohort, recipe, seeds=(1, seed))[1] - quiet) * 4]
    if seed is not None:
        noises += [(release(cohort, recipe, seeds=(1, n))[1] - quiet) * 4 for n in range(20, 40)]
    else:
        noises += [(release(cohort, recipe, seeds=(1, None))[1] - quiet) * 4 for _ in range(20)]
    noise = torch.stack(noises)
    assert len(noise.flatten().unique()) > 0.9 * noise.numel()
    assert scale_fits(noise, sigma * clip)
    assert not scale_fits(noise, sigma * clip * 1.15)
    assert not scale_fits(noise, sigma * clip / 1.15)


def test_several_steps_are_averaged_and_an_empty_one_counts() -> None:
    cohort = make_cohort([1, 1, 1])
    recipe = make_recipe(sampling_rate=1.0, steps=4, noise_multiplier=NEARLY_NONE)
    model, found = release(cohort, recipe)
    assert torch.allclose(found, mean_of_patients(model, cohort), atol=1e-5)
    empty = release(cohort, replace(recipe, sampling_rate=1e-9))[1]
    assert float((empty * 3e-9).abs().max()) < 1e-4
    assert float(empty.abs().max()) > 0


def test_the_same_seeds_repeat_it_and_each_seed_matters() -> None:
    cohort = make_cohort([3, 1, 4])
    recipe = make_recipe(images_per_patient=2)
    first, same, sampling, noise = (
        release(cohort, recipe, seeds=seeds)[1] for seeds in ((1, 2), (1, 2), (3, 2), (1, 3))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, sampling)
    assert not torch.equal(first, noise)


def test_averages_by_cohort_size_are_the_release_of_all_patients() -> None:
    """What a federation's plain averaging makes of two sites."""
    recipe = make_recipe(mechanism="none", noise_multiplier=0.0)
    whole = make_cohort([1, 2, 1, 3, 2])
    parts = []
    for patients in ([0, 1], [2, 3, 4]):
        rows = np.isin(whole.patients, patients)
        parts.append(
            replace(
                whole,
                images=whole.images[rows],
                labels=whole.labels[rows],
                patients=whole.patients[rows] - patients[0],
                num_patients=len(patients),
            )
        )
    averaged = (2 * release(parts[0], recipe)[1] + 3 * release(parts[1], recipe)[1]) / 5
    assert torch.allclose(averaged, release(whole, recipe)[1], atol=1e-6)


def test_images_look_like_their_class() -> None:
    """Class 0 is bright on the left and class 1 on the right, under noise of a real size."""
    cohort = make_cohort([1] * 300)
    side = (np.arange(32)[None, None, None] >= 16) == cohort.labels[:, None, None, None]
    cohort = replace(cohort, images=(0.4 * cohort.images + 0.5 * side).astype(np.float32))
    model, _ = release(cohort, make_recipe(noise_multiplier=2.0, physical_batch=300))
    labels = torch.arange(60) % 2
    images = model.images(labels, torch.Generator().manual_seed(0))
    right = images[..., 16:].mean(dim=(1, 2, 3)) - images[..., :16].mean(dim=(1, 2, 3))
    assert ((right > 0).long() == labels).float().mean() > 0.9


def test_what_cannot_be_released_is_refused() -> None:
    cohort = replace(make_cohort([1, 1]), labels=np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(UsageError, match="one class"):
        release(cohort, make_recipe())
    with pytest.raises(UsageError, match="book-keeping"):
        release(make_cohort([1]), make_recipe(engine="opacus_hooks"))
