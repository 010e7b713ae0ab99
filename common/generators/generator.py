"""The malignancy-conditioned generator of Osuala et al. 2024, for any number of classes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from common.generators.layout import channels

NOISE_SIZE = 100
_EMBEDDING_SIZE = 50


class Generator(nn.Module):
    """Noise (n, 100) and classes (n,) to images (n, 1, S, S) in [-1, 1].

    The class enters as an embedding brought to 100 numbers beside the noise. At 128 pixels and
    ``width`` 1 the channels are 200-1024-512-256-128-64-1; smaller images leave out the widest
    layers. Instance norms have no weights and mix no images.

    Source:
        Osuala et al., "Enhancing the Utility of Privacy-Preserving Cancer Classification using
        Synthetic Data", 2024, https://arxiv.org/abs/2407.12669
    """

    def __init__(self, *, image_size: int, num_classes: int, width: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Embedding(num_classes, _EMBEDDING_SIZE),
            nn.Linear(_EMBEDDING_SIZE, NOISE_SIZE),
            nn.LeakyReLU(0.1),
        )
        widths = channels(image_size, width)[::-1]
        self.body = nn.Sequential(
            nn.ConvTranspose2d(2 * NOISE_SIZE, widths[0], 4, bias=False),
            nn.InstanceNorm2d(widths[0]),
            nn.ReLU(),
        )
        for below, above in itertools.pairwise(widths):
            self.body.append(nn.ConvTranspose2d(below, above, 4, stride=2, padding=1, bias=False))
            self.body.append(nn.InstanceNorm2d(above))
            self.body.append(nn.ReLU())
        self.body.append(nn.ConvTranspose2d(widths[-1], 1, 4, stride=2, padding=1))
        self.body.append(nn.Tanh())

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        both = torch.cat([noise, self.embed(labels)], dim=1)
        return self.body(both[:, :, None, None])
