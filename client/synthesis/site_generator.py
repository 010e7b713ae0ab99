"""The generator that a federation trains, as one site sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from client import devices
from client.data.cohort import Cohort
from client.dp.memory import images_that_fit
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds
from client.local_model import LocalTraining, ModelMismatch, Surroundings
from client.synthesis.gan import GanTrainee, gan_engine, made_up_pairs, train_gan_round
from client.synthesis.kernel import KernelTrainee, kernel_engine, made_up_images, train_kernel_round
from common.config import Precision
from common.errors import UsageError
from common.generators.blueprint import Blueprint
from common.generators.conditional_gan import ConditionalGan
from common.generators.moments import MomentGenerator
from common.generators.settings import GanSettings
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteGenerator:
    """How the site builds the shared generator (public); see `LocalModel`."""

    blueprint: Blueprint
    seed: int

    def build(self) -> ConditionalGan | MomentGenerator:
        """A fresh generator; all of its weights are trained."""
        return self.blueprint.build(self.seed)

    def prepare(self, recipe: Recipe, around: Surroundings) -> LocalTraining:
        """See `LocalModel`."""
        try:
            return self._prepared(recipe, around)
        except UsageError as error:
            raise ModelMismatch(str(error)) from error

    def _prepared(self, recipe: Recipe, around: Surroundings) -> LocalTraining:
        model, settings = self.build(), self.blueprint.settings
        if isinstance(model, MomentGenerator):
            engine = kernel_engine(model, recipe) if recipe.private else None
            fit = _images_that_fit(model, made_up_images(model), recipe, around.memory_bytes)
            kernel = KernelTrainee(model=model, engine=engine, most_images=fit)
            return _Training(model=model, hold_round=partial(train_kernel_round, kernel))
        assert isinstance(settings, GanSettings)
        model.to(around.device)
        trainee = GanTrainee(
            gan=model,
            engine=gan_engine(model, recipe, settings) if recipe.private else None,
            settings=settings,
            augmentation=around.augmentation,
            most_images=_images_that_fit(
                model.discriminator, made_up_pairs(model), recipe, around.memory_bytes
            ),
        )
        return _Training(model=model, hold_round=partial(train_gan_round, trainee))


def _images_that_fit(
    model: nn.Module, made_up: PatientBatch, recipe: Recipe, limit: float | None
) -> int | None:
    if limit is None:
        return None
    batch = made_up.to(devices.of(model))
    return images_that_fit(model, batch, Precision(recipe.precision), limit_bytes=limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Training:
    model: nn.Module
    hold_round: Callable[[Cohort, Recipe, RoundSeeds], None]

    def train(
        self,
        cohort: Cohort,
        recipe: Recipe,
        seeds: RoundSeeds,
        shift: Mapping[str, Tensor] | None = None,
    ) -> None:
        if recipe.proximal_mu or shift:
            raise ValueError("generators are trained without corrections of drift")
        self.hold_round(cohort, recipe, seeds)
