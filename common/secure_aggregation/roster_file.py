"""The roster as a file that hospitals pin: names and public keys, to be compared by telephone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from common import exchange
from common.errors import UsageError
from common.secure_aggregation.roster import Roster

SCHEMA = "fedward.roster/1"
_NAMES = frozenset({"consortium", "hospitals"})


@dataclass(frozen=True, kw_only=True, slots=True)
class RosterFile:
    """Who takes part in secure sums of a consortium (public).

    Attributes:
        consortium: its name.
        roster: names and identity keys of the hospitals.
    """

    consortium: str
    roster: Roster

    @property
    def fingerprint(self) -> str:
        """Of all names and keys, to be read out aloud."""
        return exchange.in_groups(self.roster.digest)

    def lines(self) -> list[str]:
        """Each hospital with the first half of its key, as its own ``fedward site key`` has it."""
        return [f"{name}  key {exchange.in_groups(key)}" for name, key in self.roster.members]

    def dumps(self) -> str:
        """As the file has it."""
        fields = {
            "schema": SCHEMA,
            "consortium": self.consortium,
            "hospitals": dict(self.roster.members),
        }
        return json.dumps(fields, indent=2) + "\n"


def make(consortium: str, keys: Mapping[str, str]) -> RosterFile:
    """The roster of these hospitals' keys.

    >>> make("north", {"st-mary": "ab" * 32, "st-luke": "cd" * 32}).lines()[0]
    'st-luke  key cdcd-cdcd-cdcd-cdcd-cdcd-cdcd-cdcd-cdcd'

    Raises:
        UsageError: A name or a key is none, or these are no roster.
    """
    exchange.check_name("consortium", consortium)
    for name in keys:
        exchange.check_name("hospitals", name)
    return RosterFile(consortium=consortium, roster=Roster.of(keys))


def read(path: Path) -> RosterFile:
    """The roster at ``path``.

    Raises:
        UsageError: It cannot be read or is not whole and sound, in one line.
    """
    fields = exchange.read_fields(path, schema=SCHEMA, names=_NAMES)
    consortium, hospitals = fields["consortium"], fields["hospitals"]
    if not isinstance(consortium, str) or not isinstance(hospitals, dict):
        raise UsageError(f"{path}: must name a consortium and its hospitals")
    keys = cast("dict[str, object]", hospitals)
    if not all(isinstance(key, str) for key in keys.values()):
        raise UsageError(f"{path}: hospitals: a key must be text")
    try:
        return make(consortium, cast("dict[str, str]", keys))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
