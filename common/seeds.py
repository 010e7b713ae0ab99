"""Random seeds, one for each site, round and purpose.

A seed used twice makes the same noise twice, and two equal noises cancel. Simulations derive
every seed from the run's seed by hashing, so that they can be repeated; a hospital has no seeds,
it takes its randomness from the operating system.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from common.errors import UsageError


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

    def seed(self, round_number: int, purpose: str) -> int | None:
        """A seed in [0, 2**63) for one purpose within one round; none: the system's entropy."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedSeeds:
    """Repeatable seeds of a simulated hospital. Who knows ``run_seed`` can remove the noise."""

    run_seed: int
    site: str

    def seed(self, round_number: int, purpose: str) -> int:
        """The same seed for the same site, round and purpose."""
        return derive_seed(self.run_seed, self.site, round_number, purpose)


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemSeeds:
    """No seeds: a hospital's randomness is the operating system's, and can never be repeated.

    Raises:
        UsageError: if a seed is configured all the same.
    """

    configured: int | None = None

    def __post_init__(self) -> None:
        if self.configured is not None:
            raise UsageError(
                f"seed={self.configured}: a hospital's noise comes from the operating system and "
                "cannot be repeated; remove the seed"
            )

    def seed(self, round_number: int, purpose: str) -> int | None:
        """None, for every round and purpose."""
        del round_number, purpose
        return None
