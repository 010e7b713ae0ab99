"""A head on centred features: what all images have in common is left out before it is trained.

Features of a pretrained network share a large part. Under clipping and noise that part takes most
of a gradient's norm and tells nothing apart. Its mean over images without any content, drawn from
a formula, is public and costs no budget (docs/centering.md has what it is worth).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UsageError

_EXPONENTS = (1.0, 1.5, 2.0)
_SEED = 1
_COUNT, _AT_ONCE = 48, 16
_NORM = 4.0  # a fresh head's gradient is half of it: twice the usual clipping norm


class CenteredHead(nn.Module):
    """A linear layer on features of which ``center`` was subtracted, all of one length.

    Attributes:
        linear: the layer; all that is trained here.
        center: (d,), subtracted from features (public).
    """

    center: Tensor

    def __init__(self, linear: nn.Linear, center: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("center", center)

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) → (..., C)."""
        return self.linear(_NORM * functional.normalize(features - self.center, dim=-1))


def center_head(model: nn.Module) -> None:
    """Put a `CenteredHead` in the place of the last layer; its centre is zero so far.

    Raises:
        UsageError: if the classifier is not one linear layer.
    """
    head = cast("Any", getattr(model, "get_classifier", lambda: None))()
    if not isinstance(head, nn.Linear):
        raise UsageError(
            "finetune.center=true: the classifier of this model is not one linear layer; set "
            "finetune.center=false"
        )
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    name = next(name for name, module in modules if module is head)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, CenteredHead(head, torch.zeros(head.in_features)))


def centered_head(model: nn.Module) -> CenteredHead | None:
    """The model's centred head, if it has one."""
    return next((module for module in model.modules() if isinstance(module, CenteredHead)), None)


def measure_center(model: nn.Module, image_size: int) -> None:
    """Set the centre to the mean of what the head gets of images without content.

    Raises:
        UsageError: if the head gets something else than one vector of each image.
    """
    head = centered_head(model)
    assert head is not None
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = head.register_forward_pre_hook(note)
    mode = model.training
    try:
        with torch.no_grad():
            model.eval()
            images = contentless(_COUNT, image_size) * 2.0 - 1.0
            for start in range(0, _COUNT, _AT_ONCE):
                model(torch.as_tensor(images[start : start + _AT_ONCE]))
    finally:
        handle.remove()
        model.train(mode)
    features = torch.cat(seen)
    if features.shape != (_COUNT, head.linear.in_features):
        raise UsageError(
            "finetune.center=true: the classifier of this model does not get one vector of each "
            "image; set finetune.center=false"
        )
    head.center.copy_(features.double().mean(dim=0))


def contentless(count: int, size: int) -> NDArray[np.float32]:
    """(count, 1, size, size) in [0, 1]: noise whose amplitude falls with frequency as 1/f^a.

    So do amplitudes of natural images, with ``a`` about 1 (Field 1987, J. Opt. Soc. Am. A 4:2379).
    Brightness and contrast differ at random. The same arguments give the same images.
    """
    rng = np.random.default_rng(_SEED)
    return np.stack([_noise(rng, size, _EXPONENTS[i % len(_EXPONENTS)]) for i in range(count)])


def _noise(rng: np.random.Generator, size: int, exponent: float) -> NDArray[np.float32]:
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequencies[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.standard_normal((size, size))) / frequencies**exponent
    plane = np.fft.ifft2(spectrum).real
    low, high = np.percentile(plane, (1.0, 99.0))
    contrast = rng.uniform(0.3, 1.0)
    grey = np.clip((plane - low) / (high - low), 0.0, 1.0) * contrast
    return (grey + rng.uniform(0.0, 1.0 - contrast))[None].astype(np.float32)
