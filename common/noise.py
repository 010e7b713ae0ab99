"""Noise that nobody can draw again: of hospitals' gradients, and of the server's means."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from itertools import count as numbers

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_AT_ONCE = 1 << 19  # numbers drawn at once: 4 MiB
_DRAWS = 4


class Noise:
    """Gaussian noise from ChaCha20 streams whose keys are the operating system's entropy.

    The generators of torch and numpy would be guessed: that of torch uses 32 bits of its seed on a
    CPU, and of both the numbers that are drawn next follow from those that were drawn, which show
    wherever what they were added to is known.

    Numbers are made in 64 bits by Box and Muller's method from 53-bit uniforms, four of them for
    each one, added and halved, so that a sum with a gradient does not show in the last bits which
    numbers can have been drawn (Holohan and Braghin 2021, arXiv 2107.10138, section 5.1).

    Args:
        seed: of a simulation, whose runs can be repeated: the keys follow from it. Who knows it can
            remove the noise.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._next_key = _system_key if seed is None else _keys_of(seed).__next__

    def normal(self, count: int) -> Numbers:
        """(count,) standard normal numbers."""
        parts = [self._normal(portion) for portion in _portions(count)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def added_to(self, values: NDArray[np.floating], std: float) -> Numbers:
        """``values`` plus noise of standard deviation ``std``, added in 64 bits."""
        noise: Numbers = self.normal(values.size).reshape(values.shape)
        return np.asarray(values + std * noise, dtype=np.float64)

    def _normal(self, count: int) -> Numbers:
        pairs = math.ceil(count * _DRAWS / 2)
        uniform = self._uniform(2 * pairs).reshape(2, pairs)
        radius = np.sqrt(-2.0 * np.log(uniform[0]))
        angle = (2.0 * math.pi) * uniform[1]
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        draws: Numbers = both[: count * _DRAWS].reshape(_DRAWS, count)
        return np.asarray(draws.sum(axis=0) / math.sqrt(_DRAWS), dtype=np.float64)

    def _uniform(self, count: int) -> Numbers:
        """(count,) multiples of 2^-53 in (0, 1], under a key of their own: no stream runs out."""
        stream = Cipher(algorithms.ChaCha20(self._next_key(), bytes(16)), mode=None).encryptor()
        words = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8")
        return ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def _system_key() -> bytes:
    return os.urandom(32)


def _keys_of(seed: int) -> Iterator[bytes]:
    """Keys of a simulation, each used once."""
    for number in numbers():
        yield hashlib.sha256(f"noise\x1f{seed}\x1f{number}".encode()).digest()


def _portions(total: int) -> Iterator[int]:
    for start in range(0, total, _AT_ONCE):
        yield min(_AT_ONCE, total - start)
