"""One round of training a conditional GAN at one site: only its discriminator meets patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from client import devices
from client.data.cohort import Cohort
from client.dp import engines
from client.dp.check import check_engine, made_up_batch
from client.dp.engine import BookkeepingEngine, Engine
from client.dp.loader import Loader, PoissonDraws
from client.dp.loss import ImageLosses, image_losses
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds, Trainee, step_of
from common.config import AugmentationConfig, EngineName, Precision
from common.errors import UsageError
from common.generators.conditional_gan import ConditionalGan, draw_noise
from common.generators.discriminator import with_class
from common.generators.settings import GanSettings
from common.messages import Recipe

# One-sided label smoothing of Osuala et al. 2024: what the discriminator is told of real images.
_REAL_FROM, _REAL_TO = 0.7, 1.2

_BETAS = (0.5, 0.999)


@dataclass(frozen=True, kw_only=True, slots=True)
class GanTrainee:
    """A GAN, and the engine attached to its discriminator where training is private.

    Attributes:
        gan: to be trained.
        engine: of `gan_engine`; none without privacy.
        settings: how it is trained.
        augmentation: how real images are changed.
        most_images: at most so many in memory, if the site's memory says so.
        on_step: told after each discriminator step how many have been done.
    """

    gan: ConditionalGan
    engine: Engine | None
    settings: GanSettings
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    most_images: int | None = None
    on_step: Callable[[int], None] | None = None


def gan_engine(gan: ConditionalGan, recipe: Recipe, settings: GanSettings) -> Engine:
    """An engine for the discriminator, tried on made-up patients.

    Raises:
        UsageError: if the engine does not cover it.
    """
    name, precision = EngineName(recipe.engine), Precision(recipe.precision)
    if name is EngineName.opacus_ghost:
        raise UsageError("a GAN is trained with another engine than opacus_ghost: choose another")
    losses_of = losses_for(settings)
    if losses_of is not image_losses and name is not EngineName.bookkeeping:
        raise UsageError(f"loss {settings.loss} needs the book-keeping engine")
    engine = engines.build(name, gan.discriminator)
    check_engine(gan.discriminator, engine, made_up_pairs(gan).to(devices.of(gan)))
    if name is EngineName.bookkeeping:  # compared in full precision, used in half
        return BookkeepingEngine(gan.discriminator, precision, losses_of)
    return engine


def made_up_pairs(gan: ConditionalGan) -> PatientBatch:
    """What stands for patients where the discriminator is tried or measured."""
    return made_up_batch(
        (2, gan.image_size, gan.image_size), num_outputs=1, multilabel=True, one_image_each=False
    )


def losses_for(settings: GanSettings) -> ImageLosses:
    """What the discriminator makes small, from logits (n, 1) and targets (n, 1)."""
    return _hinge_losses if settings.loss == "hinge" else image_losses


def _hinge_losses(logits: Tensor, targets: Tensor) -> Tensor:
    signs = torch.where(targets > 0, 1.0, -1.0)
    return functional.relu(1.0 - signs * logits).flatten()


def train_gan_round(trainee: GanTrainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
    """Update the GAN in place by ``recipe.steps`` discriminator steps.

    After every ``steps_per_generator_step`` of them the generator takes one, from the
    discriminator alone. Adam takes the place of the recipe's optimiser.

    Guarantees:
        Under a private recipe all weights are functions of the outputs of ``recipe.steps``
        Poisson-subsampled Gaussian mechanisms over patients with the recipe's rate and noise
        multiplier. Real images enter through those alone, and with them their classes: generated
        images have classes drawn evenly, and join each step in a number that follows from the
        *expected* number of patients.

    Raises:
        UsageError: if the images have several labels each, the recipe's optimiser is not Adam, or
            the round is too short for one step of the generator.
    """
    _check(trainee, cohort, recipe)
    gan = trainee.gan.train()
    expected = recipe.sampling_rate * cohort.num_patients
    step = step_of(
        Trainee(
            model=gan.discriminator,
            engine=trainee.engine,
            losses_of=losses_for(trainee.settings),
        ),
        torch.optim.Adam(
            gan.discriminator.parameters(), lr=recipe.learning_rate, betas=_BETAS, fused=True
        ),
        recipe,
        expected,
        seeds,
    )
    rng = np.random.default_rng(seeds.sampling)
    seed = int(rng.integers(2**63))
    device = devices.of(gan)
    loader = Loader.of(cohort, recipe, trainee.augmentation, trainee.most_images, seed, device)
    # generated images get a stream of their own, so that none depends on who was drawn
    forger = _Forger(trainee, devices.generator_on(device, int(rng.integers(2**63))))
    draws = PoissonDraws(cohort, recipe, rng)
    num_fakes = max(1, round(expected))
    as_real = partial(_real, generator=loader.generator)
    for number in range(1, recipe.steps + 1):
        real = (batch.changed(as_real) for batch in loader.batches(draws.draw()))
        step.step(chain(real, forger.fakes(num_fakes, loader.most_images)))
        if number % trainee.settings.steps_per_generator_step == 0:
            forger.step()
        if trainee.on_step is not None:
            trainee.on_step(number)


def _check(trainee: GanTrainee, cohort: Cohort, recipe: Recipe) -> None:
    if cohort.labels.ndim != 1:
        raise UsageError("a conditional GAN needs one class for each image, not several findings")
    if recipe.optimizer != "adam":
        raise UsageError(f"training.optimizer={recipe.optimizer}: a GAN is trained with adam")
    every = trainee.settings.steps_per_generator_step
    if every > recipe.steps:
        raise UsageError(
            f"steps_per_generator_step={every}: a round has {recipe.steps} steps, so the generator "
            "would never take one"
        )


def _real(batch: PatientBatch, generator: torch.Generator) -> PatientBatch:
    targets = torch.rand((len(batch.labels), 1), generator=generator, device=generator.device)
    return replace(
        batch,
        images=with_class(batch.images, batch.labels),
        labels=_REAL_FROM + (_REAL_TO - _REAL_FROM) * targets,
    )


class _Forger:
    """Draws generated images, and trains the generator; no patient is in reach."""

    def __init__(self, trainee: GanTrainee, generator: torch.Generator) -> None:
        self._gan = trainee.gan
        self._settings = trainee.settings
        self._random = generator
        self._weights = list(trainee.gan.generator.parameters())
        self._optimizer = torch.optim.Adam(
            self._weights, lr=trainee.settings.generator_learning_rate, betas=_BETAS, fused=True
        )

    def fakes(self, count: int, at_once: int) -> Iterator[PatientBatch]:
        """``count`` images in all, each clipped on its own."""
        for start in range(0, count, at_once):
            part = min(at_once, count - start)
            with torch.no_grad():
                images = self._draw(part)
            yield PatientBatch(
                images=images,
                labels=images.new_zeros((part, 1)),
                patients=torch.arange(part, device=images.device),
                num_patients=part,
            )

    def step(self) -> None:
        """One step towards images that the discriminator takes for real."""
        logits = self._gan.discriminator(self._draw(self._settings.generator_batch))
        loss = -logits if self._settings.loss == "hinge" else functional.softplus(-logits)
        gradients = torch.autograd.grad(loss.mean(), self._weights)
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._gan.average is not None:
            with torch.no_grad():
                for kept, weight in zip(self._gan.average.parameters(), self._weights, strict=True):
                    kept.lerp_(weight, 1.0 - self._settings.ema)

    def _draw(self, count: int) -> Tensor:
        """Images of classes drawn evenly, with their class, (count, 2, S, S)."""
        random = self._random
        labels = torch.randint(
            self._gan.num_classes, (count,), generator=random, device=random.device
        )
        return with_class(self._gan.generator(draw_noise(count, random), labels), labels)
