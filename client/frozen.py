"""A frozen backbone says the same of an image each time: it is asked once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client import devices
from common import models
from common.files import write_atomically
from common.slices import SlicePool

_VALUES_AT_ONCE = 1 << 21  # of images together: 128 of 128 pixels


class FrozenBackbone:
    """Everything below a model's last layer, or pool of slices, where that alone is trained.

    Attributes:
        head: what is trained; from the features of an image it makes the logits that the model
            makes from the image.
    """

    def __init__(self, model: nn.Module, head: nn.Linear | SlicePool) -> None:
        self._model = model
        self._sha256 = models.frozen_sha256(model)
        self.head = head

    @classmethod
    def of(cls, model: nn.Module, image_shape: tuple[int, ...]) -> FrozenBackbone | None:
        """The backbone, if there is one that can be asked once.

        It cannot where more than that is trained, where what is below it is random in
        training (dropout, stochastic depth) or mixes images, or where something comes after it.

        Args:
            model: with its trainable weights marked.
            image_shape: of an image, channels first.
        """
        head = models.trained_top(model)
        if head is None:
            return None
        backbone, mode = cls(model, head), model.training
        made_up = torch.rand((3, *image_shape), generator=torch.Generator().manual_seed(0))
        made_up = made_up.to(devices.of(model))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            inputs = backbone._inputs(made_up)
            alone = [one for image in made_up.split(1) for one in backbone._inputs(image)]
            model.train()
            logits = model(made_up)
        model.train(mode)
        one_vector = 2 if isinstance(head, nn.Linear) else 3  # of each image, or of each slice
        if len(inputs) != 1 or inputs[0].ndim != one_vector or len(alone) != len(made_up):
            return None
        same = _close(head(inputs[0]), logits) and _close(inputs[0], torch.cat(alone))
        return backbone if same else None

    def features(
        self,
        images: NDArray[np.float32],
        cache: Path | None = None,
        device: torch.device = devices.CPU,
    ) -> NDArray[np.float32]:
        """(N, d), or (N, D, d) of slices: what the head gets of ``images`` (N, 1, S, S) in [0, 1].

        They are computed on ``device``, where nothing of the model stays. With ``cache`` they are
        kept in that folder, and found there by weights and pixels; they tell as much of patients
        as the images do.
        """
        if cache is None:
            return self._computed(images, device)
        path = cache / f"{self._key(images)}.npy"
        if not path.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            np.save(file, self._computed(images, device))
            write_atomically(path, file.getvalue())
        return np.load(path)

    def _computed(self, images: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
        mode, home = self._model.training, devices.of(self._model)
        self._model.to(device)
        with torch.no_grad():
            batches = (devices.moved(batch, device) for batch in _batches(images))
            found = [self._inputs(batch)[0].cpu().numpy() for batch in batches]
        self._model.train(mode).to(home)
        devices.give_back(device)
        return np.concatenate(found)

    def _key(self, images: NDArray[np.float32]) -> str:
        known = hashlib.sha256(f"{self._sha256} {images.shape}".encode())
        for image in images:
            known.update(np.ascontiguousarray(image).data)
        return known.hexdigest()[:32]

    def _inputs(self, images: Tensor) -> list[Tensor]:
        """What the head gets, each time it is called."""
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._model.eval()
            self._model(images)
        finally:
            handle.remove()
        return seen


def _batches(images: NDArray[np.float32]) -> Iterator[Tensor]:
    """As the model takes them, in [-1, 1]; a memory map is read a batch at a time."""
    at_once = max(1, _VALUES_AT_ONCE // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), at_once):
        yield torch.from_numpy(np.array(images[start : start + at_once])) * 2.0 - 1.0


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)
