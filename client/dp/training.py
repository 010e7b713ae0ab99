"""One round of local training: Poisson batches of patients, a fixed number of steps."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from client import devices
from client.data.cohort import Cohort
from client.dp.clipping import Clipping
from client.dp.drift import correct
from client.dp.engine import Engine
from client.dp.gradients import PatientOptimizer, PlainStep, PrivateStep, StepGradient
from client.dp.loader import Loader, PoissonDraws
from client.dp.loss import ImageLosses, image_losses
from client.dp.mixture import Mixture
from client.dp.noise import SystemNoise
from common.config import AugmentationConfig, Precision
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSeeds:
    """Seeds of one round; where one is ``None``, the operating system's entropy is used.

    Attributes:
        sampling: who is drawn, and how images are changed.
        noise: what is added, in a simulation.
        key: 32 bytes that a hospital's noise follows from, where ``noise`` is ``None``.
    """

    sampling: int | None
    noise: int | None
    key: bytes | None = field(default=None, repr=False)

    @property
    def repeatable(self) -> bool:
        """Whether who trains again draws the same patients and the same noise."""
        return self.sampling is not None and (self.noise is not None or self.key is not None)

    def fixed(self) -> RoundSeeds:
        """Repeatable in any case.

        Attempts that fail by what was drawn, and draw anew, would not be Poisson sampling; attempts
        that fail by their noise would be as many looks at the patients.
        """
        drawn = secrets.randbits(128) if self.sampling is None else self.sampling
        key = secrets.token_bytes(32) if self.noise is None and self.key is None else self.key
        return replace(self, sampling=drawn, key=key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainee:
    """A model, and the engine attached to it where training is private.

    Attributes:
        model: to be trained.
        engine: none without privacy.
        augmentation: how its images are changed.
        most_images: at most so many in memory, if the site's memory says so.
        pool: synthetic images for recipes that mix them in.
        takes_features: whether cohorts hold what the model takes, and no images in [0, 1].
        losses_of: what training without privacy makes small; an engine knows its own.
        shift: added to each released gradient; see `client.dp.drift`.
    """

    model: nn.Module
    engine: Engine | None
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    most_images: int | None = None
    pool: Cohort | None = None
    takes_features: bool = False
    losses_of: ImageLosses = image_losses
    shift: Mapping[str, Tensor] | None = None


def train_round(trainee: Trainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
    """Update the model in place by ``recipe.steps`` steps on ``cohort``.

    Guarantees:
        Under a private recipe the update is the output of ``recipe.steps`` Poisson-subsampled
        Gaussian mechanisms over patients with the recipe's rate and noise multiplier, whatever
        the patients' data: an empty batch takes a noise-only step, no step is skipped. Synthetic
        images join in a number that does not depend on which patients were drawn.
    """
    trainee.model.train()
    rng = np.random.default_rng(seeds.sampling)
    mixture = Mixture.of(recipe, cohort, trainee.pool)
    step = _step_gradient(trainee, recipe, mixture, seeds)
    seed = int(rng.integers(2**63))
    device = devices.of(trainee.model)
    loader = Loader.of(cohort, recipe, trainee.augmentation, trainee.most_images, seed, device)
    loader = replace(loader, as_they_are=trainee.takes_features)
    draws = PoissonDraws(cohort, recipe, rng)
    with devices.drawing(device, int(rng.integers(2**63))):  # dropout, stochastic depth
        # drawn from a stream of their own, which nobody's presence moves
        synthetic = rng.spawn(1)[0]
        for _ in range(recipe.steps):
            batches = loader.batches(draws.draw())
            if mixture.pool is not None:
                made_up = replace(loader, cohort=mixture.pool)
                batches = chain(batches, made_up.batches(mixture.draw(synthetic)))
            step.step(batches)


def _step_gradient(
    trainee: Trainee, recipe: Recipe, mixture: Mixture, seeds: RoundSeeds
) -> StepGradient:
    parameters = [p for p in trainee.model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    match recipe.optimizer:
        case "adam":
            optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate, fused=True)
        case _:
            optimizer = torch.optim.SGD(
                parameters, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True
            )
    correct(optimizer, trainee.model, proximal_mu=recipe.proximal_mu, shift=trainee.shift)
    return step_of(trainee, optimizer, recipe, mixture.expected, seeds)


def step_of(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    expected: float,
    seeds: RoundSeeds,
) -> StepGradient:
    """What takes the steps of a round.

    Args:
        trainee: the model, and its engine where ``recipe`` is private.
        optimizer: of the model's trainable weights.
        recipe: says whether and how gradients are clipped, and how much noise is added.
        expected: what sums over a step are divided by: the expected number of patients, and of
            whatever else joins a step like one (public).
        seeds: of the noise.

    Raises:
        TypeError: if the recipe is private, and there is no engine.
    """
    if not recipe.private:
        return PlainStep(
            trainee.model,
            optimizer,
            expected_patients=expected,
            precision=Precision(recipe.precision),
            losses_of=trainee.losses_of,
        )
    if trainee.engine is None:
        raise TypeError("private training needs an engine")
    private = PatientOptimizer(
        optimizer,
        noise_multiplier=recipe.noise_multiplier,
        max_grad_norm=recipe.max_grad_norm,
        expected_batch_size=expected,  # pyright: ignore[reportArgumentType]
    )
    if seeds.noise is None:
        private.system_noise = SystemNoise(seeds.key)
    else:
        private.generator = devices.generator_on(devices.of(trainee.model), seeds.noise)
    clipping = Clipping(kind=recipe.clipping, max_grad_norm=recipe.max_grad_norm)
    return PrivateStep(trainee.engine, clipping, private)
