"""One round of local training: Poisson batches of patients, a fixed number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.cohort import Cohort
from client.dp.bookkeeping import Bookkeeper
from client.dp.gradients import PatientOptimizer, PlainStep, PrivateStep, StepGradient
from client.dp.patients import PatientBatch
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSeeds:
    """Seeds of one round: who is drawn, and what noise is added."""

    sampling: int
    noise: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainee:
    """A model, and the book-keeper attached to it where training is private."""

    model: nn.Module
    keeper: Bookkeeper | None


def train_round(trainee: Trainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
    """Update the model in place by ``recipe.steps`` steps on ``cohort``.

    Guarantees:
        Under a private recipe the update is the output of ``recipe.steps`` Poisson-subsampled
        Gaussian mechanisms over patients with the recipe's rate and noise multiplier, whatever
        the patients' data: an empty batch takes a noise-only step, no step is skipped.
    """
    trainee.model.train()
    step = _step_gradient(trainee, cohort, recipe, seeds.noise)
    rng = np.random.default_rng(seeds.sampling)
    images_of = _images_by_patient(cohort)
    for _ in range(recipe.steps):
        drawn = np.flatnonzero(rng.random(cohort.num_patients) < recipe.sampling_rate)
        chosen = [
            _choose(images_of[p], recipe.images_per_patient, rng)
            for p in drawn
            if len(images_of[p])
        ]
        step.step(_batches(cohort, chosen, recipe.physical_batch))


def _step_gradient(
    trainee: Trainee, cohort: Cohort, recipe: Recipe, noise_seed: int
) -> StepGradient:
    parameters = [p for p in trainee.model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    match recipe.optimizer:
        case "adam":
            optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate)
        case _:
            optimizer = torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=0.9)
    expected = recipe.sampling_rate * cohort.num_patients
    if not recipe.private:
        return PlainStep(trainee.model, optimizer, expected_patients=expected)
    if trainee.keeper is None:
        raise TypeError("private training needs a book-keeper")
    private = PatientOptimizer(
        optimizer,
        noise_multiplier=recipe.noise_multiplier,
        max_grad_norm=recipe.max_grad_norm,
        expected_batch_size=expected,  # pyright: ignore[reportArgumentType]
        generator=torch.Generator().manual_seed(noise_seed),
    )
    return PrivateStep(trainee.model, trainee.keeper, private)


def _images_by_patient(cohort: Cohort) -> list[NDArray[np.int64]]:
    order = np.argsort(cohort.patients, kind="stable")
    bounds = np.searchsorted(cohort.patients[order], np.arange(cohort.num_patients + 1))
    return [order[bounds[p] : bounds[p + 1]] for p in range(cohort.num_patients)]


def _choose(images: NDArray[np.int64], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return images if len(images) <= limit else rng.choice(images, size=limit, replace=False)


def _batches(
    cohort: Cohort, chosen: list[NDArray[np.int64]], physical_batch: int
) -> Iterator[PatientBatch]:
    """Whole patients together, up to ``physical_batch`` images (at least one patient) at a time."""
    group: list[NDArray[np.int64]] = []
    for images in chosen:
        if group and sum(map(len, group)) + len(images) > physical_batch:
            yield _batch(cohort, group)
            group = []
        group.append(images)
    if group:
        yield _batch(cohort, group)


def _batch(cohort: Cohort, group: list[NDArray[np.int64]]) -> PatientBatch:
    rows = np.concatenate(group)
    patients = np.repeat(np.arange(len(group)), [len(images) for images in group])
    return PatientBatch(
        images=torch.from_numpy(np.ascontiguousarray(cohort.images[rows])) * 2.0 - 1.0,
        labels=torch.from_numpy(cohort.labels[rows]),
        patients=torch.from_numpy(patients),
        num_patients=len(group),
    )
