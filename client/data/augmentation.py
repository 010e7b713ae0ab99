"""Random changes of training images, drawn anew whenever an image is used.

Each view depends on its own image and on random numbers only, never on another image of the batch:
the views of a patient remain a function of that patient's data alone, which is what clipping by
patient needs.

A volume is changed in its plane, all slices alike: CT slices are several times further apart than
their pixels, so that turning a volume out of its plane would mix unlike things.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.config import AugmentationConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Draws views of images as ``config`` says; nothing is drawn where nothing is asked for."""

    config: AugmentationConfig

    @property
    def active(self) -> bool:
        """Whether a view may differ from its image."""
        return self.config != AugmentationConfig()

    def views(self, images: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Draws ``k`` views of each image, for augmentation multiplicity (De et al. 2022).

        The views of an image stand side by side, so that ``labels.repeat_interleave(k)`` and
        ``patients.repeat_interleave(k)`` fit them and patients still ascend.

        Args:
            images: (n, 1, S, S) or (n, 1, D, S, S) in [0, 1]; left as they are.
            k: Views of each image, at least 1.
            generator: Where the draws come from, on the device of ``images``.

        Returns:
            (n k, 1, S, S) or (n k, 1, D, S, S) in [0, 1].

        Raises:
            ValueError: ``k`` is below 1, or ``images`` has another number of dimensions.

        Source:
            De, Berrada, Hayes, Smith, Balle, "Unlocking High-Accuracy Differentially Private Image
            Classification through Scale", 2022, https://arxiv.org/abs/2204.13650
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        if images.dim() not in {4, 5}:
            raise ValueError(f"images: has {images.dim()} dimensions; must be (n, 1, [D,] S, S)")
        repeated = images.repeat_interleave(k, dim=0) if k > 1 else images
        if not self.active or len(images) == 0:
            return repeated
        changed = self._flip(repeated, generator)
        return self._expose(self._move(changed, generator), generator)

    def _flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        asked = [(self.config.flip_horizontal, -1), (self.config.flip_vertical, -2)]
        if images.dim() == 5:
            asked.append((self.config.flip_slices, -3))
        for wanted, axis in asked:
            if wanted:
                flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
                images = torch.where(_beside(flipped, images), images.flip(axis), images)
        return images

    def _move(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Turns, scales and shifts in one bilinear sampling; what comes in is mirrored."""
        config = self.config
        if not (config.rotation_degrees or config.shift or config.scale):
            return images
        angle, scale, across, down = _draws(4, images, generator)
        angle = angle * math.radians(config.rotation_degrees)
        zoom = 1 + scale * config.scale
        # affine_grid maps places of the result to places of the image; the side is 2 long there.
        cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        theta = torch.stack(
            [
                torch.stack([cosine, -sine, across * 2 * config.shift], dim=1),
                torch.stack([sine, cosine, down * 2 * config.shift], dim=1),
            ],
            dim=1,
        )  # (n, 2, 3)
        # The slices of a volume become channels, so that one grid serves them all.
        flat = images.flatten(1, -3)
        grid = functional.affine_grid(theta.to(images.dtype), list(flat.shape), align_corners=False)
        moved = functional.grid_sample(flat, grid, padding_mode="reflection", align_corners=False)
        return moved.view_as(images)

    def _expose(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changes contrast around middle grey, then brightness."""
        config = self.config
        if not (config.brightness or config.contrast):
            return images
        contrast, brightness = _draws(2, images, generator)
        gain = _beside(1 + contrast * config.contrast, images)
        offset = _beside(0.5 + brightness * config.brightness, images)
        return ((images - 0.5) * gain + offset).clamp_(0.0, 1.0)


def _draws(count: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """(count, n) evenly from [-1, 1)."""
    shape = (count, len(images))
    return 2 * torch.rand(shape, generator=generator, device=images.device) - 1


def _beside(values: Tensor, images: Tensor) -> Tensor:
    """One value for each image, (n,) → (n, 1, ...), to broadcast over its pixels."""
    return values.view(-1, *(1,) * (images.dim() - 1))
