"""One model for all sites of a process, which take turns with it."""

from __future__ import annotations

from torch import nn

from client.classifier import SiteModel
from client.local_model import LocalTraining, Surroundings
from common import models
from common.config import EngineName
from common.messages import Recipe, Weights


class SharedModel:
    """A `LocalModel` for a process that holds several sites, as a simulation does.

    Each site finds the model as it was built, loads all weights that are trained before each use,
    and nothing else of a model changes (BatchNorm is refused). So a site that shares trains to the
    same bits as one with a model of its own, and none finds what another one left.

    Only private training with our own engine shares: other engines stay attached to their model.
    A model that has been checked for one kind of recipe is not checked again for the next site.
    """

    def __init__(self, inner: SiteModel) -> None:
        self._inner = inner
        self._model: nn.Module | None = None
        self._first: Weights = {}
        self._checked: dict[tuple[object, ...], LocalTraining] = {}

    def build(self) -> nn.Module:
        """A fresh model with its trainable weights marked."""
        return self._inner.build()

    def prepare(self, recipe: Recipe, around: Surroundings) -> LocalTraining:
        """See `LocalModel`; the model is the one of the site before, as it was built."""
        if not recipe.private or recipe.engine != EngineName.bookkeeping.value:
            return self._inner.prepare(recipe, around)
        if self._model is None:
            self._model = self._inner.build()
            self._first = models.trainable_weights(self._model)
        models.load_trainable_weights(self._model, self._first)
        key = _kind(recipe, around)
        if key not in self._checked:
            training = self._inner.prepare_on(self._model, recipe, around)
            if training.holds_patients:
                return training
            self._checked[key] = training
        return self._checked[key]


def _kind(recipe: Recipe, around: Surroundings) -> tuple[object, ...]:
    """What a training without patients is made for; sites of a run have the same synthetic pool."""
    return (
        recipe.precision,
        recipe.clipping,
        recipe.augmentation_multiplicity,
        around.cohort.images.shape[1:],
        around.cohort.labels.ndim,
        repr(around.augmentation),
        around.memory_bytes,
        around.pool is None,
        around.device,
    )
