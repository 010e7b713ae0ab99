"""A conditional GAN as one model, so that it travels like any other."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import UsageError
from common.generators.discriminator import Discriminator
from common.generators.generator import NOISE_SIZE, Generator
from common.generators.settings import GanSettings


class ConditionalGan(nn.Module):
    """Generator and discriminator, and the generator's running average if there is one.

    All weights count as trainable: all of them travel and are averaged by the server.

    Attributes:
        image_size: S, of its images.
        num_classes: C.
        generator: makes images.
        discriminator: tells them from real ones; the only part that meets patients.
        average: of the generator's weights over its steps; none where ``settings.ema`` is 0.
    """

    average: Generator | None

    def __init__(self, settings: GanSettings, *, image_size: int, num_classes: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.num_classes = num_classes
        self.generator = Generator(
            image_size=image_size, num_classes=num_classes, width=settings.width
        )
        self.discriminator = Discriminator(
            image_size=image_size, num_classes=num_classes, width=settings.width
        )
        self.average = copy.deepcopy(self.generator) if settings.ema else None

    def images(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one image (n, 1, S, S) in [0, 1] of each class in ``labels`` (n,)."""
        noise = draw_noise(len(labels), generator).to(labels.device)
        source = self.generator if self.average is None else self.average
        return source(noise, labels).add(1.0).div(2.0)


def draw_noise(count: int, generator: torch.Generator) -> Tensor:
    """(count, 100) standard normal numbers, on the generator's device."""
    return torch.randn((count, NOISE_SIZE), generator=generator, device=generator.device)


def build(settings: GanSettings, *, image_size: int, num_classes: int, seed: int) -> ConditionalGan:
    """A fresh GAN; the same arguments give the same weights on one machine.

    Raises:
        UsageError: for fewer than 2 classes, or an ``image_size`` other than 32, 64 and 128.
    """
    if num_classes < 2:
        raise UsageError(f"num_classes={num_classes}: a conditional GAN needs at least 2")
    with cast("Any", torch.random).fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ConditionalGan(settings, image_size=image_size, num_classes=num_classes)
