"""Noise that nobody can draw again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

_AT_ONCE = 1 << 19  # numbers drawn at once: 4 MiB
_DRAWS = 4


class SystemNoise:
    """Gaussian noise from ChaCha20 streams whose keys are the operating system's entropy.

    torch's own generator would be guessed: on a CPU it uses 32 bits of its seed, and the numbers
    that it draws next follow from those it has drawn, which show wherever a gradient is zero.

    Numbers are made in 64 bits by Box and Muller's method from 53-bit uniforms, four of them for
    each one, added and halved, so that a sum with a gradient does not show in the last bits which
    numbers can have been drawn (Holohan and Braghin 2021, arXiv 2107.10138, section 5.1).
    """

    def added_to(self, values: Tensor, std: float) -> Tensor:
        """``values`` plus noise of standard deviation ``std``, added in 64 bits."""
        parts = [self._normal(count) for count in _portions(values.numel())]
        noise = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
        noisy = values.detach().cpu().double().flatten() + std * noise
        return noisy.to(values.dtype).view_as(values).to(values.device)

    def _normal(self, count: int) -> Tensor:
        """(count,) standard normal numbers."""
        pairs = math.ceil(count * _DRAWS / 2)
        uniform = self._uniform(2 * pairs).view(2, pairs)
        radius = uniform[0].log_().mul_(-2.0).sqrt_()
        angle = uniform[1].mul_(2.0 * math.pi)
        both = torch.cat([radius * angle.cos(), radius * angle.sin()])
        return both[: count * _DRAWS].view(_DRAWS, count).sum(0) / math.sqrt(_DRAWS)

    def _uniform(self, count: int) -> Tensor:
        """(count,) multiples of 2^-53 in (0, 1], under a key of their own: no stream runs out."""
        stream = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()
        words = np.frombuffer(stream.update(bytes(8 * count)), dtype=np.uint64)
        return torch.from_numpy(((words >> np.uint64(11)) + np.uint64(1)) * 2.0**-53)


def _portions(total: int) -> Iterator[int]:
    for start in range(0, total, _AT_ONCE):
        yield min(_AT_ONCE, total - start)
