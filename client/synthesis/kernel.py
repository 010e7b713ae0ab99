"""One release, from which images follow: the mean of public features of a site's patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.data.cohort import Cohort
from client.dp import engines
from client.dp.check import check_engine, made_up_batch
from client.dp.engine import BookkeepingEngine, Engine
from client.dp.loader import Loader, PoissonDraws
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds, Trainee, step_of
from common.config import AugmentationConfig, EngineName, Precision
from common.errors import UsageError
from common.generators.moments import MomentGenerator, own_class_losses
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelTrainee:
    """What is released, and the engine attached to it where the release is private.

    Attributes:
        model: to be filled.
        engine: of `kernel_engine`; none without privacy.
        most_images: at most so many in memory, if the site's memory says so.
    """

    model: MomentGenerator
    engine: Engine | None
    most_images: int | None = None


def kernel_engine(model: MomentGenerator, recipe: Recipe) -> Engine:
    """An engine for the features, tried on made-up patients.

    Raises:
        UsageError: if the engine does not cover it.
    """
    if EngineName(recipe.engine) is not EngineName.bookkeeping:
        raise UsageError("a kernel mean needs the book-keeping engine")
    engine = engines.build(EngineName.bookkeeping, model)
    check_engine(model, engine, made_up_images(model))
    return BookkeepingEngine(model, Precision.fp32, own_class_losses)


def made_up_images(model: MomentGenerator) -> PatientBatch:
    """What stands for patients where the features are tried or measured."""
    size = model.image_size
    return made_up_batch(
        (1, size, size), num_outputs=model.num_classes, multilabel=False, one_image_each=False
    )


def train_kernel_round(
    trainee: KernelTrainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds
) -> None:
    """Set the model's moments to the mean of patients' features, whatever they were before.

    It is one step of gradient descent, with rate 1 from zero, on a loss whose gradient is the
    features; so what is drawn, clipped, added and divided by is as in all private training. A
    recipe with sampling rate 1 and one step is best: everybody counts, noise is added once.
    Several steps are averaged.

    Guarantees:
        Under a private recipe the moments are the mean of the outputs of ``recipe.steps``
        Poisson-subsampled Gaussian mechanisms over patients with the recipe's rate and noise
        multiplier. A patient's images and classes enter through those alone.

    Raises:
        UsageError: if the images have several labels each.
    """
    if cohort.labels.ndim != 1:
        raise UsageError("a kernel mean needs one class for each image, not several findings")
    model = trainee.model
    with torch.no_grad():
        model.moments.zero_()
    step = step_of(
        Trainee(model=model, engine=trainee.engine, losses_of=own_class_losses),
        torch.optim.SGD([model.moments], lr=1.0 / recipe.steps),
        recipe,
        recipe.sampling_rate * cohort.num_patients,
        seeds,
    )
    rng = np.random.default_rng(seeds.sampling)
    seed = int(rng.integers(2**63))
    loader = Loader.of(cohort, recipe, AugmentationConfig(), trainee.most_images, seed)
    draws = PoissonDraws(cohort, recipe, rng)
    for _ in range(recipe.steps):
        step.step(loader.batches(draws.draw()))
