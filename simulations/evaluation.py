"""How good a model is on held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client import devices
from client.data.cohort import Cohort
from client.frozen import FrozenBackbone
from common import models
from common.config import Personal, TaskKind
from common.errors import UsageError
from common.evaluation import Evaluation, evaluate, macro_auroc, usable
from common.messages import Weights
from common.scored import Scored, youden_thresholds
from common.task import Task

_SLICES = 128  # of all images of a batch together
_MOST_VALUES = 40


class HeldOut:
    """Scores models on one held-out cohort.

    Its patients were never trained on; their figures are released as they are, without noise,
    and no epsilon covers them.

    Layers of the sites' own that a model comes without are as they were when ``model`` was given.

    Thresholds are chosen for each model on ``thresholds_from``, another cohort (the validation
    one); without it there are none, and no figures that need one.

    Images are read a batch at a time, so a cohort that is a memory map stays on disk. Answers are
    computed on ``device``, where the model is moved to.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        cohort: Cohort,
        personal: Personal = Personal.none,
        *,
        cache: Path | None = None,
        thresholds_from: HeldOut | None = None,
        device: torch.device = devices.CPU,
    ) -> None:
        self._thresholds_from = thresholds_from
        self._model = model
        self._begun = models.trainable_weights(model)
        self._own = models.local_names(model, personal)
        self._task = task
        self._cohort = cohort
        self._cache = cache
        self._features: NDArray[np.float32] | None = None
        self._device = device
        self._backbone = FrozenBackbone.of(model, cohort.images.shape[1:])
        if self._backbone is None:
            model.to(device)

    def check(self, part: str) -> None:
        """Refuse a cohort on which no final figure can be measured, before anything is trained.

        Args:
            part: what the cohort is called in a message, such as ``"test"``.

        Raises:
            UsageError: no label has both classes there, it is of one patient, or a group has so
                many values that it would name patients rather than describe them.
        """
        cohort = self._cohort
        if not usable(self._task, cohort.labels, cohort.patients):
            names = ", ".join(self._task.names)
            raise UsageError(
                f"{len(cohort.labels)} {part} images of {cohort.num_patients} patients cannot "
                f"measure a model: none of {names} is both present and absent in them; hold out "
                f"more by data.{part}_fraction, or give another split"
            )
        for name, column in cohort.groups.items():
            num_values = np.unique(column).size
            if num_values > _MOST_VALUES:
                raise UsageError(
                    f"data.columns.groups.{name}: {num_values} values among the {part} images, at "
                    f"most {_MOST_VALUES} can be told apart; cut numbers by "
                    f"data.columns.bins.{name}, or leave the group out"
                )

    def auroc(self, weights: Weights) -> float | None:
        """Mean area under the ROC curve over the labels, ``None`` if no label has one."""
        return macro_auroc(self._plain(weights))

    def evaluate(self, weights: Weights, *, seed: int) -> Evaluation:
        """All figures, with intervals from redrawing patients."""
        return evaluate(self.scored(weights), seed=seed)

    def scored(self, weights: Weights) -> Scored:
        """Answers and truth, with groups and the thresholds for these weights."""
        scored = self._plain(weights)
        if self._thresholds_from is None:
            return scored
        chosen = youden_thresholds(self._thresholds_from._plain(weights))
        return replace(scored, thresholds=chosen)

    @property
    def cohort(self) -> Cohort:
        """The images and whose they are."""
        return self._cohort

    def scores(self, weights: Weights) -> NDArray[np.float64]:
        """(N, L) probability of each name of the task; of the one finding of a binary task."""
        begun = {name: self._begun[name] for name in self._own}
        models.load_trainable_weights(self._model, {**begun, **weights})
        logits = self._logits().double()
        match self._task.kind:
            case TaskKind.binary:
                return logits.softmax(dim=1)[:, 1:].numpy()
            case TaskKind.multiclass:
                return logits.softmax(dim=1).numpy()
            case TaskKind.multilabel:
                return logits.sigmoid().numpy()

    def _logits(self) -> Tensor:
        if self._backbone is None:
            self._model.eval()
            with torch.no_grad():
                return torch.cat([self._model(batch).cpu() for batch in self._batches()])
        if self._features is None:
            images, device = self._cohort.images, self._device
            self._features = self._backbone.features(images, self._cache, device)
        with torch.no_grad():
            return self._backbone.head(torch.from_numpy(self._features))

    def _plain(self, weights: Weights) -> Scored:
        return Scored(
            task=self._task,
            labels=self._cohort.labels,
            scores=self.scores(weights),
            patients=self._cohort.patients,
            groups=self._cohort.groups,
        )

    def _batches(self) -> Iterator[Tensor]:
        """Images as the model takes them, in [-1, 1]; volumes by their number of slices."""
        images = self._cohort.images
        depth = images.shape[2] if images.ndim == 5 else 1
        in_batch = max(1, _SLICES // depth)
        for start in range(0, len(images), in_batch):
            batch = np.array(images[start : start + in_batch], dtype=np.float32)
            yield devices.moved(torch.from_numpy(batch), self._device) * 2.0 - 1.0
