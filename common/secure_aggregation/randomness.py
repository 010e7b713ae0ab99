"""Whole numbers that nobody can predict, drawn exactly, many at a time."""

from __future__ import annotations

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

Words = NDArray[np.uint64]


class RandomWords:
    """Uniform numbers from a ChaCha20 stream whose key is the operating system's entropy.

    Args:
        seed: of a simulation, which can be repeated. Who knows it can remove the noise.
    """

    def __init__(self, seed: int | None = None) -> None:
        key = os.urandom(32)
        if seed is not None:
            key = hashlib.sha256(f"discrete noise\x1f{seed}".encode()).digest()
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def below(self, bound: int, count: int) -> Words:
        """(count,) uniform whole numbers from 0 to ``bound`` - 1, without bias."""
        if not 1 <= bound < 1 << 63:
            raise ValueError(f"bound={bound}: must be from 1 to 2^63 - 1")
        fair = (1 << 64) - (1 << 64) % bound  # below this, each remainder is equally frequent
        found = self._words(count)
        if fair < 1 << 64:
            again = np.flatnonzero(found >= np.uint64(fair))
            while len(again):
                found[again] = self._words(len(again))
                again = again[found[again] >= np.uint64(fair)]
        return found % np.uint64(bound)

    def _words(self, count: int) -> Words:
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8").astype(np.uint64)
