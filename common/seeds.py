"""Random seeds, one for each site, round and purpose.

A seed used twice makes the same noise twice, and two equal noises cancel. Simulations derive
every seed from the run's seed by hashing, so that they can be repeated; a hospital draws its
seeds from the operating system and can never be repeated.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Protocol


def derive_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit seed that depends on every part.

    >>> derive_seed(1, "hospital-1", 2, "noise") == derive_seed(1, "hospital-1", 2, "noise")
    True
    >>> derive_seed(1, "hospital-1", 2, "noise") == derive_seed(1, "hospital-2", 2, "noise")
    False

    Raises:
        ValueError: if a part holds the character that separates parts.
    """
    if any("\x1f" in part for part in parts if isinstance(part, str)):
        raise ValueError("parts: must not hold the unit separator (\\x1f)")
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class SeedSource(Protocol):
    """Where a site's training takes its randomness from."""

    def seed(self, round_number: int, purpose: str) -> int:
        """A seed in [0, 2**63) for one purpose within one round."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedSeeds:
    """Repeatable seeds of a simulated hospital. Who knows ``run_seed`` can remove the noise."""

    run_seed: int
    site: str

    def seed(self, round_number: int, purpose: str) -> int:
        """The same seed for the same site, round and purpose."""
        return derive_seed(self.run_seed, self.site, round_number, purpose)


class SystemSeeds:
    """Seeds from the operating system's entropy: nobody can draw the same noise again."""

    def seed(self, round_number: int, purpose: str) -> int:
        """A fresh seed at every call."""
        del round_number, purpose
        return secrets.randbits(63)
