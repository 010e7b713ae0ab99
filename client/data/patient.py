"""Whose image it is, without saying who.

Readers turn a patient's identifier into a keyed hash before a record exists. Equal identifiers
give equal hashes under one key, so images stay together and ledgers know a patient again; without
the key a hash says nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

_SHORTEST_KEY = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientHash:
    """HMAC-SHA256 under the site's secret, 128 bits of it in hexadecimal.

    Attributes:
        secret: At least 16 bytes that never leave the site and stay the same as long as its
            ledgers: with another secret every patient is a new one.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < _SHORTEST_KEY:
            raise ValueError(
                f"secret of {len(self.secret)} bytes: must have at least {_SHORTEST_KEY}"
            )

    def __call__(self, identifier: str) -> str:
        """The hash that stands for the patient ``identifier``.

        >>> hashed = PatientHash(secret=bytes(32))
        >>> len(hashed("0017")), hashed("0017") == hashed("0017"), hashed("0017") == hashed("17")
        (32, True, False)
        """
        return hmac.new(self.secret, identifier.encode(), hashlib.sha256).hexdigest()[:32]
