"""Memory for one gradient at a time, used again for the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST_NUMBERS = 1 << 24  # 64 MiB of 32-bit numbers


class Scratch:
    """A buffer that is warm in the processor's cache, where a new one would have to be mapped."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """An uninitialised tensor, in place of the last one; none if it would be too large."""
        size = math.prod(shape)
        if size > _MOST_NUMBERS:
            return None
        known = self._buffer
        if known.numel() < size or known.dtype != like.dtype or known.device != like.device:
            self._buffer = like.new_empty(size)
        return self._buffer[:size].view(shape)
