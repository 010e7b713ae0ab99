"""Who takes part, and by which key each hospital is known: pinned at every site."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.errors import UsageError

MAX_SITES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """Names and identity keys of all hospitals of a federation (public), in order of names.

    Guarantees: the same members have the same `digest`, and others have another. Every message of
    the protocol is bound to it, so hospitals with different rosters cannot be brought together.

    Attributes:
        members: name and Ed25519 verifying key (hexadecimal) of each, by name.
    """

    members: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        names, keys = self.names, [key for _, key in self.members]
        if not 2 <= len(names) <= MAX_SITES:
            raise UsageError(f"roster of {len(names)} hospitals: 2 to {MAX_SITES} can take part")
        if list(names) != sorted(set(names)) or not all(names):
            raise UsageError("roster: each name once, none empty, in order")
        if len(set(keys)) != len(keys):
            raise UsageError("roster: two hospitals have one key")
        if not all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys):
            raise UsageError("roster: a key is 64 lower-case hexadecimal digits")

    @classmethod
    def of(cls, keys: Mapping[str, str]) -> Roster:
        """From verifying keys by name.

        Raises:
            UsageError: if these are no roster.
        """
        return cls(members=tuple(sorted(keys.items())))

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(name for name, _ in self.members)

    @property
    def digest(self) -> str:
        """SHA-256 over names and keys, hexadecimal."""
        text = json.dumps(self.members, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(b"fedward roster v1\n" + text.encode()).hexdigest()

    def key_of(self, name: str) -> str:
        """The verifying key of ``name``.

        Raises:
            KeyError: if it is no member.
        """
        return dict(self.members)[name]

    def number_of(self, name: str) -> int:
        """From 1: the point at which a member's shares lie."""
        return self.names.index(name) + 1

    def ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        """Members among ``names``, once each, in order."""
        return tuple(sorted(set(names) & set(self.names)))
