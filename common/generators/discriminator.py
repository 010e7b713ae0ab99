"""The malignancy-conditioned discriminator of Osuala et al. 2024, for any number of classes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from common.generators.layout import channels

_EMBEDDING_SIZE = 50


class Discriminator(nn.Module):
    """Images with their class (n, 2, S, S) to logits of "real" (n, 1).

    The first plane is the image in [-1, 1], the second its class number everywhere, so that the
    model takes one tensor, as private training needs. The class enters the convolutions as an
    embedding brought to a plane of its own. At 128 pixels and ``width`` 1 the channels are
    2-64-128-256-512-1024-1; smaller images leave out the widest layers.

    Source:
        Osuala et al., "Enhancing the Utility of Privacy-Preserving Cancer Classification using
        Synthetic Data", 2024, https://arxiv.org/abs/2407.12669
    """

    def __init__(self, *, image_size: int, num_classes: int, width: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Embedding(num_classes, _EMBEDDING_SIZE),
            nn.Linear(_EMBEDDING_SIZE, image_size * image_size),
            nn.LeakyReLU(0.1),
        )
        widths = channels(image_size, width)
        self.body = nn.Sequential(
            nn.Conv2d(2, widths[0], 6, stride=2, padding=2), nn.LeakyReLU(0.1)
        )
        for below, above in itertools.pairwise(widths):
            self.body.append(nn.Conv2d(below, above, 6, stride=2, padding=2, bias=False))
            self.body.append(nn.InstanceNorm2d(above))
            self.body.append(nn.LeakyReLU(0.1))
        self.top = nn.Conv2d(widths[-1], 1, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        pixels, labels = images[:, :1], images[:, 1, 0, 0].round().long()
        plane = self.embed(labels).view_as(pixels)
        return self.top(self.body(torch.cat([pixels, plane], dim=1))).flatten(1)


def with_class(images: Tensor, labels: Tensor) -> Tensor:
    """What the discriminator takes: images (n, 1, S, S) with labels (n,) as a second plane."""
    planes = labels.to(images.dtype).view(-1, 1, 1, 1).expand_as(images)
    return torch.cat([images, planes], dim=1)
