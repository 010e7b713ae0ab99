"""Images as a few numbers each, and back: coarse content exactly, fine content as texture."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_GRID = 8  # texture is measured in this many cells along each side
_FAINTEST = 1e-4  # energy, of images in [-1, 1]
_USUAL = -2.5  # log of a usual amplitude of texture


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineCode:
    """Codes of d numbers, each of a size of about one half for medical images in [-1, 1].

    The first are the lowest cosine coefficients, weighted by their frequency, as natural images
    have energies that fall with it. Then, for each octave above, the lowest cosine coefficients
    of the map of the logarithm of local amplitudes; decoding fills such an octave with noise of
    these amplitudes. All constants are public and chosen without data.

    Attributes:
        image_size: S.
        detail: cosine coefficients of frequencies below this are kept.
        texture: so many coefficients along each side of each octave's map; 0 leaves texture out.
    """

    image_size: int
    detail: int
    texture: int

    def __post_init__(self) -> None:
        if not 2 <= self.detail <= self.image_size:
            raise ValueError(f"detail={self.detail}: must be 2 to {self.image_size}")
        if not 0 <= self.texture <= _GRID:
            raise ValueError(f"texture={self.texture}: must be 0 to {_GRID}")
        if self.image_size % _GRID:
            raise ValueError(f"image_size={self.image_size}: must be a multiple of {_GRID}")

    @property
    def size(self) -> int:
        """How many numbers code an image."""
        return int(self._kept().sum()) + len(self._octaves()) * self.texture**2

    def encode(self, images: Tensor) -> Tensor:
        """(n, 1, S, S) in [-1, 1] to (n, d)."""
        spectrum = _transform(images[:, 0])
        kept = self._kept()
        parts = [spectrum[:, kept] * self._weights()[kept]]
        cell = self.image_size // _GRID
        for octave in self._octaves():
            energy = _transform(spectrum * octave, inverse=True).square()
            cells = functional.avg_pool2d(energy[:, None], cell)[:, 0]
            levels = 0.5 * (cells + _FAINTEST).log() - _USUAL
            lowest = _transform(levels)[:, : self.texture, : self.texture]
            parts.append((lowest * self._texture_weights()).flatten(1))
        return torch.cat(parts, dim=1)

    def decode(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        """(n, d) to images (n, 1, S, S), about in [-1, 1], whose texture is drawn at random."""
        side, kept = self.image_size, self._kept()
        count, coarse = len(codes), int(kept.sum())
        spectrum = codes.new_zeros((count, side, side))
        spectrum[:, kept] = codes[:, :coarse] / self._weights()[kept]
        images = _transform(spectrum, inverse=True)
        shape = (count, self.texture, self.texture)
        for number, octave in enumerate(self._octaves()):
            start = coarse + number * self.texture**2
            levels = codes.new_zeros((count, _GRID, _GRID))
            lowest = codes[:, start : start + self.texture**2].reshape(shape)
            levels[:, : self.texture, : self.texture] = lowest / self._texture_weights()
            usual = _transform(levels, inverse=True) + _USUAL
            amplitudes = functional.interpolate(
                usual.clamp(-8.0, 0.0).exp()[:, None], size=(side, side), mode="bilinear"
            )[:, 0]
            white = torch.randn((count, side, side), generator=generator)
            noise = _transform(white * octave, inverse=True) / octave.mean().sqrt()
            images = images + amplitudes * noise
        return images[:, None]

    def _frequencies(self) -> Tensor:
        along = torch.arange(self.image_size, dtype=torch.float32)
        return torch.hypot(along[:, None], along[None])

    def _kept(self) -> Tensor:
        return self._frequencies() < self.detail

    def _weights(self) -> Tensor:
        return (1.0 + self._frequencies()) * (4.0 / self.image_size)

    def _texture_weights(self) -> Tensor:
        along = torch.arange(self.texture, dtype=torch.float32)
        return (1.0 + torch.hypot(along[:, None], along[None])) / (1.5 * _GRID)

    def _octaves(self) -> list[Tensor]:
        """(S, S) 1.0 where a frequency is of the octave; the last one takes all that is left."""
        if not self.texture:
            return []
        num = max(1, int(math.log2(self.image_size / self.detail)))
        edges = [self.detail * 2**number for number in range(num)] + [2 * self.image_size]
        found = self._frequencies()
        return [
            ((found >= low) & (found < high)).float() for low, high in itertools.pairwise(edges)
        ]


def _transform(values: Tensor, *, inverse: bool = False) -> Tensor:
    """Orthonormal two-dimensional cosine transform (type II) of (n, S, S), or its inverse."""
    side = values.shape[-1]
    places = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(math.pi / side * (places[None] + 0.5) * places[:, None])
    basis *= math.sqrt(2.0 / side)
    basis[0] /= math.sqrt(2.0)
    matrix = basis.to(values.dtype)
    if inverse:
        return matrix.T @ values @ matrix
    return matrix @ values @ matrix.T
