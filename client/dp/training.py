"""One round of local training: Poisson batches of patients, a fixed number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.augmentation import Augmentation
from client.data.cohort import Cohort
from client.dp.clipping import Clipping
from client.dp.engine import Engine
from client.dp.gradients import PatientOptimizer, PlainStep, PrivateStep, StepGradient
from client.dp.noise import SystemNoise
from client.dp.patients import PatientBatch
from common.config import AugmentationConfig, Precision
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSeeds:
    """Seeds of one round; where one is ``None``, the operating system's entropy is used.

    Attributes:
        sampling: who is drawn, and how images are changed.
        noise: what is added.
    """

    sampling: int | None
    noise: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainee:
    """A model, and the engine attached to it where training is private.

    Attributes:
        model: to be trained.
        engine: none without privacy.
        augmentation: how its images are changed.
        most_images: at most so many in memory, if the site's memory says so.
    """

    model: nn.Module
    engine: Engine | None
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    most_images: int | None = None


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
    loader = _Loader(
        cohort=cohort,
        augmentation=Augmentation(config=trainee.augmentation),
        views=recipe.augmentation_multiplicity,
        most_images=min(recipe.physical_batch, trainee.most_images or recipe.physical_batch),
        generator=torch.Generator().manual_seed(int(rng.integers(2**63))),
    )
    images_of = _images_by_patient(cohort)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # dropout, stochastic depth
        for _ in range(recipe.steps):
            drawn = np.flatnonzero(rng.random(cohort.num_patients) < recipe.sampling_rate)
            chosen = [
                _choose(images_of[p], recipe.images_per_patient, rng)
                for p in drawn
                if len(images_of[p])
            ]
            step.step(loader.batches(chosen))


def _step_gradient(
    trainee: Trainee, cohort: Cohort, recipe: Recipe, noise_seed: int | None
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
        return PlainStep(
            trainee.model,
            optimizer,
            expected_patients=expected,
            precision=Precision(recipe.precision),
        )
    if trainee.engine is None:
        raise TypeError("private training needs an engine")
    private = PatientOptimizer(
        optimizer,
        noise_multiplier=recipe.noise_multiplier,
        max_grad_norm=recipe.max_grad_norm,
        expected_batch_size=expected,  # pyright: ignore[reportArgumentType]
    )
    if noise_seed is None:
        private.system_noise = SystemNoise()
    else:
        private.generator = torch.Generator().manual_seed(noise_seed)
    clipping = Clipping(kind=recipe.clipping, max_grad_norm=recipe.max_grad_norm)
    return PrivateStep(trainee.engine, clipping, private)


def _images_by_patient(cohort: Cohort) -> list[NDArray[np.int64]]:
    order = np.argsort(cohort.patients, kind="stable")
    bounds = np.searchsorted(cohort.patients[order], np.arange(cohort.num_patients + 1))
    return [order[bounds[p] : bounds[p + 1]] for p in range(cohort.num_patients)]


def _choose(images: NDArray[np.int64], limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return images if len(images) <= limit else rng.choice(images, size=limit, replace=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loader:
    """Makes batches of whole patients out of a cohort's images."""

    cohort: Cohort
    augmentation: Augmentation
    views: int
    most_images: int
    generator: torch.Generator

    def batches(self, chosen: list[NDArray[np.int64]]) -> Iterator[PatientBatch]:
        """Up to ``most_images`` images, views counted, but at least one patient at a time."""
        group: list[NDArray[np.int64]] = []
        for images in chosen:
            if group and (sum(map(len, group)) + len(images)) * self.views > self.most_images:
                yield self._batch(group)
                group = []
            group.append(images)
        if group:
            yield self._batch(group)

    def _batch(self, group: list[NDArray[np.int64]]) -> PatientBatch:
        rows = np.concatenate(group)
        patients = np.repeat(np.arange(len(group)), [len(images) for images in group])
        images = torch.from_numpy(np.ascontiguousarray(self.cohort.images[rows]))
        views = self.augmentation.views(images, self.views, self.generator)
        return PatientBatch(
            images=views * 2.0 - 1.0,
            labels=torch.from_numpy(self.cohort.labels[rows]).repeat_interleave(self.views, 0),
            patients=torch.from_numpy(patients).repeat_interleave(self.views),
            num_patients=len(group),
        )
