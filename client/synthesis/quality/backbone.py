"""Features of images from a frozen model."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from client.data.image import resize
from client.synthesis.quality.images import Features, Images, check_images
from client.synthesis.quality.progress import Progress, silent
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.errors import UsageError

_BATCH = 32


class Backbone:
    """A model without its head: grey images → one feature vector each.

    Figures that two backbones give cannot be compared, so ``name`` holds a digest of the weights.
    """

    def __init__(self, model: nn.Module, *, name: str, image_size: int) -> None:
        self._model = model.eval().requires_grad_(False)
        self._image_size = image_size
        self.name = name

    @classmethod
    def load(cls, config: ModelConfig, *, image_size: int, seed: int = 0) -> Backbone:
        """The model of ``config`` for images of ``image_size`` pixels, to which others are scaled.

        Without ``config.weights`` its weights are random, drawn by ``seed``: sound for tests, and
        figures of such a model mean little.

        Raises:
            UsageError: The architecture, its size or its weights are not what they should be.
        """
        model = models.build(
            config,
            FinetuneConfig(mode=FinetuneMode.head),
            image_size=image_size,
            num_classes=0,
            seed=seed,
        )
        state = {key: value.detach().cpu().numpy() for key, value in model.state_dict().items()}
        digest = models.weights_sha256(state)[:12]
        drawn = "" if config.weights is not None else ", random weights"
        name = f"{config.architecture} at {image_size} px{drawn} ({digest})"
        return cls(model, name=name, image_size=image_size)

    def features(
        self, images: Images, *, what: str = "features", progress: Progress = silent
    ) -> Features:
        """(n, d) features of (n, 1, S, S) images in [0, 1]; a batch at a time in memory.

        Args:
            images: They may be a memory map.
            what: What ``progress`` calls them.
            progress: Told after each batch.

        Raises:
            UsageError: The images are not (n, 1, S, S) in [0, 1], or a feature is not finite.
        """
        check_images(images, what)
        rows: list[Features] = []
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                batch = torch.from_numpy(self._fit(images[start : start + _BATCH]))
                rows.append(self._model(batch * 2.0 - 1.0).double().flatten(1).numpy())
                progress(what, min(start + _BATCH, len(images)), len(images))
        found = np.concatenate(rows)
        if not np.isfinite(found).all():
            raise UsageError(f"{self.name}: a feature is NaN or infinite; are its weights sound?")
        return found

    def _fit(self, batch: Images) -> Images:
        fitted = [resize(image[0], self._image_size) for image in np.asarray(batch, np.float32)]
        return np.stack(fitted)[:, None]
