"""The classifier that a federation trains, as one site sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from client.data.cohort import Cohort
from client.dp import engines
from client.dp.check import check_engine, made_up_batch
from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine, Engine
from client.dp.memory import images_that_fit
from client.dp.training import RoundSeeds, Trainee, train_round
from client.frozen import FrozenBackbone
from client.local_model import LocalTraining, ModelMismatch, Surroundings
from client.secure_aggregation.gradients import patient_gradients
from common import models
from common.config import AugmentationConfig, EngineName, FinetuneConfig, ModelConfig, Precision
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
        return self.prepare_on(self.build(), recipe, around)

    def prepare_on(
        self, model: nn.Module, recipe: Recipe, around: Surroundings
    ) -> _Training | _HeadTraining:
        """The same on a model that was built before, as it was built.

        Raises:
            ModelMismatch: if private training does not cover it.
        """
        backbone = self._backbone(model, recipe, around)
        if backbone is not None:
            return _HeadTraining(model, backbone, recipe, around, num_outputs=self.num_classes)
        model.to(around.device)
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

    def _backbone(
        self, model: nn.Module, recipe: Recipe, around: Surroundings
    ) -> FrozenBackbone | None:
        """What need not be computed anew in each step, if the recipe allows to leave it out."""
        as_it_is = (
            around.augmentation == AugmentationConfig()
            and recipe.augmentation_multiplicity == 1
            and recipe.precision == Precision.fp32.value
            and recipe.engine == EngineName.bookkeeping.value
        )
        if not as_it_is:
            return None
        return FrozenBackbone.of(model, around.cohort.images.shape[1:])

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
        ).to(around.device)
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
    holds_patients: ClassVar[bool] = False

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

    def patient_gradients(
        self, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds
    ) -> Iterator[Mapping[str, Tensor]]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for gradient in patient_gradients(self.trainee, cohort, recipe, seeds):
            yield {names[parameter]: value for parameter, value in gradient.items()}


class _HeadTraining:
    """Training of a frozen backbone's head on features computed once; a processor is enough."""

    holds_patients: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        backbone: FrozenBackbone,
        recipe: Recipe,
        around: Surroundings,
        *,
        num_outputs: int,
    ) -> None:
        self.model = model
        self._features = backbone.features(around.cohort.images, around.cache, around.device)
        pool = around.pool
        if pool is not None:
            made_up = backbone.features(pool.images, around.cache, around.device)
            pool = replace(pool, images=made_up)
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._names = {names[p]: name for name, p in backbone.head.named_parameters()}
        engine, most_images = None, None
        if recipe.private:
            try:
                engine, most_images = self._engine(backbone.head, around, num_outputs)
            except UsageError as error:
                raise ModelMismatch(str(error)) from error
        self._trainee = Trainee(
            model=backbone.head,
            engine=engine,
            most_images=most_images,
            pool=pool,
            takes_features=True,
        )

    def train(
        self,
        cohort: Cohort,
        recipe: Recipe,
        seeds: RoundSeeds,
        shift: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `LocalTraining`."""
        renamed = {self._names[name]: value for name, value in (shift or {}).items()}
        trainee = replace(self._trainee, shift=renamed)
        train_round(trainee, replace(cohort, images=self._features), recipe, seeds)

    def patient_gradients(
        self, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds
    ) -> Iterator[Mapping[str, Tensor]]:
        """See `GivesGradients`."""
        full = {short: name for name, short in self._names.items()}
        names = {p: full[short] for short, p in self._trainee.model.named_parameters()}
        features = replace(cohort, images=self._features)
        for gradient in patient_gradients(self._trainee, features, recipe, seeds):
            yield {names[parameter]: value for parameter, value in gradient.items()}

    def _engine(
        self, head: nn.Module, around: Surroundings, num_outputs: int
    ) -> tuple[Engine, int | None]:
        engine = BookkeepingEngine(head)
        batch = made_up_batch(
            self._features.shape[1:],
            num_outputs=num_outputs,
            multilabel=around.cohort.labels.ndim > 1,
            one_image_each=False,
        )
        check_engine(head, engine, batch)
        if around.memory_bytes is None:
            return engine, None
        fit = images_that_fit(head, batch, Precision.fp32, limit_bytes=around.memory_bytes)
        return engine, fit
