"""The classifier that a federation trains, as one site sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from client.data.cohort import Cohort
from client.dp import engines
from client.dp.check import check_engine, made_up_batch
from client.dp.clipping import Clipping
from client.dp.engine import Engine
from client.dp.memory import images_that_fit
from client.dp.training import RoundSeeds, Trainee, train_round
from client.local_model import LocalTraining, ModelMismatch, Surroundings
from common import models
from common.config import EngineName, FinetuneConfig, ModelConfig, Precision
from common.errors import UsageError
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteModel:
    """How the site builds the shared model (public); with ``depth``, one for volumes."""

    config: ModelConfig
    finetune: FinetuneConfig
    image_size: int
    num_classes: int
    seed: int
    depth: int | None = None

    def build(self) -> nn.Module:
        """A fresh model with its trainable weights marked."""
        return models.build(
            self.config,
            self.finetune,
            image_size=self.image_size,
            num_classes=self.num_classes,
            seed=self.seed,
            depth=self.depth,
        )

    def prepare(self, recipe: Recipe, around: Surroundings) -> LocalTraining:
        """See `LocalModel`."""
        model = self.build()
        engine, most_images = None, None
        if recipe.private:
            try:
                engine, most_images = self._engine_of(model, recipe, around)
            except UsageError as error:
                raise ModelMismatch(str(error)) from error
        return _Training(
            trainee=Trainee(
                model=model,
                engine=engine,
                augmentation=around.augmentation,
                most_images=most_images,
                pool=around.pool,
            )
        )

    def _engine_of(
        self, model: nn.Module, recipe: Recipe, around: Surroundings
    ) -> tuple[Engine, int | None]:
        """A checked engine, and how many images fit into the site's memory."""
        name, precision = EngineName(recipe.engine), Precision(recipe.precision)
        together = recipe.images_per_patient * recipe.augmentation_multiplicity > 1
        batch = made_up_batch(
            around.cohort.images.shape[1:],
            num_outputs=self.num_classes,
            multilabel=around.cohort.labels.ndim > 1,
            one_image_each=name is EngineName.opacus_ghost and not together,
        )
        engine = engines.build(name, model)
        check_engine(model, engine, batch)
        engine.clipped_sums(batch, Clipping(kind=recipe.clipping, max_grad_norm=1.0))
        if precision is not Precision.fp32:  # compared in full precision, used in half
            engine = engines.build(name, model, precision)
        if around.memory_bytes is None:
            return engine, None
        fit = images_that_fit(model, batch, precision, limit_bytes=around.memory_bytes)
        return engine, fit


@dataclass(frozen=True, kw_only=True, slots=True)
class _Training:
    trainee: Trainee

    @property
    def model(self) -> nn.Module:
        return self.trainee.model

    def train(
        self,
        cohort: Cohort,
        recipe: Recipe,
        seeds: RoundSeeds,
        shift: Mapping[str, Tensor] | None = None,
    ) -> None:
        train_round(replace(self.trainee, shift=shift), cohort, recipe, seeds)
