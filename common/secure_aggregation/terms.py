"""What all sites of a round must agree on before any of them says anything."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields

from common.errors import UsageError

MAX_WEIGHTS = 1 << 28
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Public terms of one round.

    Guarantees: `context` differs whenever any term does, and every key, share, signature and mask
    is bound to it. So nothing of another run, round, roster or task can be used in this one.

    Attributes:
        run_id: of the federation's run.
        round: from 1.
        roster: digest of the roster.
        num_sites: members of the roster.
        threshold: so many sites must help to take a mask off; above (num_sites + max_colluders)
            / 2, so that two sets of so many honest sites and all colluders share an honest one.
        max_dropouts: so many sites may be missing from the sum; the noise is sized for it.
        max_colluders: so many sites may tell the server everything they know.
        num_weights: length of the vectors that are summed.
        modulus_bits: 32 or 64: sums are modulo 2 to this.
        subject: SHA-256 of what sites were asked to compute (model, recipe, mechanism).
    """

    run_id: str
    round: int
    roster: str
    num_sites: int
    threshold: int
    max_dropouts: int
    max_colluders: int
    num_weights: int
    modulus_bits: int
    subject: str

    def __post_init__(self) -> None:
        _require(bool(self.run_id) and len(self.run_id) <= 200, "run_id", self.run_id, "1 to 200")
        _require(self.round >= 1, "round", self.round, "at least 1")
        for name in ("roster", "subject"):
            value = getattr(self, name)
            _require(_DIGEST.fullmatch(value) is not None, name, value, "a SHA-256")
        _require(self.modulus_bits in {32, 64}, "modulus_bits", self.modulus_bits, "32 or 64")
        sound = 1 <= self.num_weights <= MAX_WEIGHTS
        _require(sound, "num_weights", self.num_weights, f"1 to {MAX_WEIGHTS}")
        for name in ("max_dropouts", "max_colluders"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        least = least_threshold(self.num_sites, self.max_colluders)
        most = self.num_sites - self.max_dropouts
        _require(
            least <= self.threshold <= most,
            "threshold",
            self.threshold,
            f"{least} to {most} with {self.num_sites} sites, of which {self.max_dropouts} may be "
            f"missing and {self.max_colluders} collude",
        )

    @property
    def least_in_sum(self) -> int:
        """Fewer sites than this are never summed: the noise of the others would not do."""
        return max(self.threshold, self.num_sites - self.max_dropouts)

    @property
    def context(self) -> bytes:
        """32 bytes that stand for all terms."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"fedward secure aggregation terms v1\n" + text.encode()).digest()

    def to_dict(self) -> dict[str, object]:
        """Plain values by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Terms:
        """The inverse of `to_dict`.

        Raises:
            UsageError: if a term is missing, unknown, of the wrong kind or out of bounds.
        """
        kinds = {item.name: str if item.type == "str" else int for item in fields(cls)}
        if set(values) != set(kinds) or any(
            not isinstance(values[name], kind) or isinstance(values[name], bool)
            for name, kind in kinds.items()
        ):
            raise UsageError("terms of secure aggregation: fields are missing or of another kind")
        return cls(**values)  # pyright: ignore[reportArgumentType]


def least_threshold(num_sites: int, max_colluders: int) -> int:
    """The smallest threshold against a server that tells sites different things.

    >>> least_threshold(5, 0), least_threshold(5, 1), least_threshold(2, 0)
    (3, 4, 2)
    """
    return (num_sites + max_colluders) // 2 + 1


def _require(condition: bool, name: str, value: object, bound: str) -> None:
    if not condition:
        raise UsageError(f"secure aggregation: {name}={value}: must be {bound}")
