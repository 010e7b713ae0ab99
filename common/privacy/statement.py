"""What a site says it has spent, signed, and how the server checks it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from common.config import Unit
from common.errors import UsageError
from common.privacy import keys

_DOMAIN = b"fedward spend statement v1\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpendStatement:
    """A cohort's spend at one moment. Every field is public; the cohort is a keyed fingerprint.

    Attributes:
        epsilon: Upper bound over everything counted, open reservations included; may be infinite.
        epsilon_committed: The same over committed events only; this one can never fall.
        epsilon_alone: Where noise is shared among sites: ``epsilon`` if no other site can be
            trusted. Absent in statements without such noise, which keep their old form.
        num_events: Events counted in ``epsilon``.
        length: Rows of the ledger; can never fall.
        head: Hash of the last row.
        signature: The site's, over all other fields.
    """

    cohort: str
    epsilon: float
    epsilon_committed: float
    delta: float
    unit: Unit
    accountant: str
    adjacency: str
    num_events: int
    num_open: int
    length: int
    head: str
    public_key: str
    signature: str = ""
    epsilon_alone: float | None = None

    @property
    def private(self) -> bool:
        """Whether any finite guarantee is left."""
        return math.isfinite(self.epsilon)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready fields; an infinite epsilon is null, beside ``private: false``."""
        alone = {} if self.epsilon_alone is None else {"epsilon_alone": _alone(self.epsilon_alone)}
        return {
            **alone,
            "cohort": self.cohort,
            "private": self.private,
            "epsilon": _finite(self.epsilon),
            "epsilon_committed": _finite(self.epsilon_committed),
            "delta": self.delta,
            "unit": self.unit.value,
            "accountant": self.accountant,
            "adjacency": self.adjacency,
            "num_events": self.num_events,
            "num_open": self.num_open,
            "length": self.length,
            "head": self.head,
            "public_key": self.public_key,
            "signature": self.signature,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> SpendStatement:
        """The statement that `to_dict` wrote.

        Raises:
            UsageError: A field is missing or of the wrong kind.
        """
        try:
            statement = cls(
                cohort=_text(fields, "cohort"),
                epsilon=_epsilon(fields["epsilon"]),
                epsilon_committed=_epsilon(fields["epsilon_committed"]),
                delta=float(cast(float, fields["delta"])),
                unit=Unit(fields["unit"]),
                accountant=_text(fields, "accountant"),
                adjacency=_text(fields, "adjacency"),
                num_events=_count(fields, "num_events"),
                num_open=_count(fields, "num_open"),
                length=_count(fields, "length"),
                head=_text(fields, "head"),
                public_key=_text(fields, "public_key"),
                signature=_text(fields, "signature"),
                epsilon_alone=_read_alone(fields),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"spend statement: {type(error).__name__} {error}") from error
        if fields.get("private") is not statement.private:
            raise UsageError("spend statement: private contradicts epsilon")
        return statement

    def message(self) -> bytes:
        """The bytes that the signature covers."""
        fields = self.to_dict()
        del fields["signature"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return _DOMAIN + text.encode()

    def signed(self, key: keys.SiteKey) -> SpendStatement:
        """The same with the signature of ``key``."""
        unsigned = replace(self, public_key=key.public_key, signature="")
        return replace(unsigned, signature=key.sign(unsigned.message()))


def check_statement(
    statement: SpendStatement,
    *,
    public_key: str | None = None,
    previous: SpendStatement | None = None,
) -> tuple[str, ...]:
    """What is wrong with ``statement``; empty if nothing is. For the server.

    Args:
        statement: The latest from a site.
        public_key: The site's key as enrolled; ``None`` trusts the first statement's own.
        previous: The last accepted statement of the same site and cohort.
    """
    problems: list[str] = []
    if not keys.verify(statement.public_key, statement.message(), statement.signature):
        problems.append("signature: does not fit the statement")
    known = public_key or (previous.public_key if previous else statement.public_key)
    if statement.public_key != known:
        problems.append("public_key: not the key this site is known by")
    if statement.epsilon_committed > statement.epsilon * (1 + 1e-9):
        problems.append("epsilon: below what is committed")
    if statement.epsilon_alone is not None and statement.epsilon_alone < statement.epsilon * (
        1 - 1e-9
    ):
        problems.append("epsilon_alone: below what it is with the other sites' noise")
    if previous is None:
        return tuple(problems)
    if statement.cohort != previous.cohort:
        problems.append("cohort: another than before")
    if statement.length < previous.length:
        problems.append(f"length: went back from {previous.length} to {statement.length}")
    if statement.length == previous.length and statement.head != previous.head:
        problems.append("head: the ledger's history was rewritten")
    same_measure = (statement.delta, statement.accountant, statement.unit) == (
        previous.delta,
        previous.accountant,
        previous.unit,
    )
    # Equal spends in another order may differ in the last bits.
    if same_measure and statement.epsilon_committed < previous.epsilon_committed * (1 - 1e-9):
        problems.append("epsilon_committed: went back")
    return tuple(problems)


def _alone(epsilon: float) -> dict[str, object]:
    return {"epsilon": _finite(epsilon)}


def _read_alone(fields: Mapping[str, object]) -> float | None:
    if "epsilon_alone" not in fields:
        return None
    return _epsilon(cast("Mapping[str, object]", fields["epsilon_alone"])["epsilon"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _epsilon(value: object) -> float:
    if value is None:
        return math.inf
    epsilon = float(cast(float, value))
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon!r}: must be a finite number, at least 0, or null")
    return epsilon


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not text")
    return value


def _count(fields: Mapping[str, object], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{name} is not a count")
    return value
