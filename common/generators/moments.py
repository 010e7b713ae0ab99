"""Images from each class's mean code and spread alone: one release, and nothing to train."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UsageError
from common.generators.cosine import CosineCode
from common.generators.settings import MomentSettings

# Parts of the squared norm of an image's features: that it is there, its code, the squares.
_SHARES = (0.1, 0.3, 0.6)

_LEAST_SHARE = 0.05  # of a class among the images, whatever the noise says
_LEAST_SPREAD = 0.02  # of a code's number, as a part of its usual size


class MomentGenerator(nn.Module):
    """Draws codes from one Gaussian a class, with independent numbers, and decodes them.

    Its only weight is the mean over patients of the features of their images, placed at their
    class: a class-conditional kernel mean embedding (Harder et al. 2021, "DP-MERF", arXiv
    2002.11603) whose features are public: a constant, an image's code and its squares, together
    at most 1 long. So every patient adds at most 1 and nothing needs to be clipped at 1. Averages
    over hospitals by cohort size are the features' mean over all their patients.

    Attributes:
        image_size: S.
        num_classes: C.
        moments: (C, 1 + 2 d), zero until it is released; see `client.synthesis.kernel`.
    """

    def __init__(self, settings: MomentSettings, *, image_size: int, num_classes: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.num_classes = num_classes
        self._code = CosineCode(
            image_size=image_size, detail=settings.detail, texture=settings.texture
        )
        self.moments = nn.Parameter(torch.zeros(num_classes, 1 + 2 * self._code.size))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, S, S) in [-1, 1] to (n, C), whose gradients are the features of an image."""
        return functional.linear(self.features(images), self.moments)

    def features(self, images: Tensor) -> Tensor:
        """(n, 1 + 2 d), each at most 1 long whatever the image."""
        codes = self._code.encode(images) / self._radius
        codes = _within_one(codes)
        there, mean, square = map(math.sqrt, _SHARES)
        ones = torch.ones((len(codes), 1))
        return torch.cat([there * ones, mean * codes, square * codes.square()], dim=1)

    def images(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one image (n, 1, S, S) in [0, 1] of each class in ``labels`` (n,)."""
        means, spreads = self.gaussians()
        normal = torch.randn((len(labels), self._code.size), generator=generator)
        codes = (means[labels] + spreads[labels] * normal) * self._radius
        return self._code.decode(codes, generator).add(1.0).div(2.0).clamp(0.0, 1.0)

    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Each class's mean code and standard deviations, (C, d) each, as far as noise allows."""
        there, mean, square = map(math.sqrt, _SHARES)
        moments, size = self.moments.detach(), self._code.size
        share = (moments[:, :1] / there).clamp(min=_LEAST_SHARE)
        means = _within_one(moments[:, 1 : 1 + size] / (mean * share))
        squares = moments[:, 1 + size :] / (square * share)
        least = (_LEAST_SPREAD / math.sqrt(size)) ** 2
        return means, (squares - means.square()).clamp(min=least, max=1.0).sqrt()

    @property
    def _radius(self) -> float:
        """Length that most codes have at most."""
        return 0.75 * math.sqrt(self._code.size)


def _within_one(rows: Tensor) -> Tensor:
    """The same rows, shortened to length 1 where they are longer."""
    return rows / rows.square().sum(1, keepdim=True).sqrt().clamp(min=1.0)


def own_class_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """(n,) minus the output of an image's own class: the features are what it moves there."""
    return -outputs.gather(1, labels[:, None])[:, 0]


def build(settings: MomentSettings, *, image_size: int, num_classes: int) -> MomentGenerator:
    """An empty generator: nothing in it is random.

    Raises:
        UsageError: for sizes that it cannot have.
    """
    if num_classes < 2:
        raise UsageError(f"num_classes={num_classes}: a conditional generator needs at least 2")
    try:
        return MomentGenerator(settings, image_size=image_size, num_classes=num_classes)
    except ValueError as error:
        raise UsageError(str(error)) from error
