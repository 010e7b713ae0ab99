"""How good a model is on held-out images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.cohort import Cohort
from common import metrics, models
from common.messages import Weights

_BATCH = 128


class HeldOut:
    """Scores models on one held-out cohort.

    Its patients were never trained on; their figures are released as they are, without noise,
    and no epsilon covers them.
    """

    def __init__(self, model: nn.Module, cohort: Cohort) -> None:
        self._model = model
        self._cohort = cohort

    def auroc(self, weights: Weights) -> float:
        """Area under the ROC curve of the positive class."""
        return metrics.auroc(self._cohort.labels, self.scores(weights))

    def evaluate(self, weights: Weights, *, seed: int) -> metrics.Evaluation:
        """All figures, with an interval from redrawing patients."""
        return metrics.evaluate(
            self._cohort.labels, self.scores(weights), self._cohort.patients, seed=seed
        )

    def scores(self, weights: Weights) -> NDArray[np.float64]:
        """Probability of the positive class of each image (N,)."""
        models.load_trainable_weights(self._model, weights)
        self._model.eval()
        images = torch.from_numpy(self._cohort.images)
        with torch.inference_mode():
            logits = [self._model(part * 2.0 - 1.0) for part in images.split(_BATCH)]
        return torch.cat(logits).double().softmax(dim=1)[:, 1].numpy()
