"""The rows of a ledger as a chain: each signed row holds the hash of the one before.

Whoever lacks the site's key cannot add, change, reorder or remove a row inside the chain without
it showing; rows missing at the end show against the signed head kept beside the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

from common.errors import LedgerError
from common.privacy import keys
from common.privacy.events import Event, dump, load, repeat, split, within

GENESIS = "0" * 64
_ROW_DOMAIN = b"fedward ledger row v1\n"


class Kind(Enum):
    """What a row records."""

    opened = "opened"
    reserve = "reserve"
    commit = "commit"
    abandon = "abandon"


class State(Enum):
    """What became of a request. Reserved counts as spent."""

    reserved = "reserved"
    committed = "committed"
    abandoned = "abandoned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row: its exact text, its hash and the site's signature over the hash.

    The text holds ``seq``, ``kind``, ``previous`` (hash), ``time`` (UTC), ``request_id``,
    ``events``, and what the kind adds: cohort, unit and schema; purpose, origin and budget; reason.
    """

    text: str
    hash: str
    signature: str

    @property
    def fields(self) -> dict[str, object]:
        """The text, parsed."""
        parsed: object = json.loads(self.text)
        if not isinstance(parsed, dict):
            raise LedgerError("the ledger holds a row that is not a record")
        return cast("dict[str, object]", parsed)


def make_row(fields: dict[str, object], key: keys.SiteKey) -> Row:
    """A signed row of ``fields``."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    digest = hash_of(text)
    return Row(text=text, hash=digest, signature=key.sign(_ROW_DOMAIN + digest.encode()))


def hash_of(text: str) -> str:
    """The hash under which the next row refers to a row with this text."""
    return hashlib.sha256(_ROW_DOMAIN + text.encode()).hexdigest()


def follow(seq: int, row: Row, *, length: int, head: str, public_key: str) -> dict[str, object]:
    """The fields of ``row``, found at position ``seq`` after ``length`` rows that end in ``head``.

    Raises:
        LedgerError: The row is missing, changed, out of order or unsigned.
        KeyError: It lacks a field that every row has.
        ValueError: It is not JSON.
    """
    expected = length + 1
    if seq != expected:
        raise LedgerError(f"row {expected} of the ledger is missing or out of order")
    if hash_of(row.text) != row.hash:
        raise LedgerError(f"row {seq} of the ledger was changed")
    if not keys.verify(public_key, _ROW_DOMAIN + row.hash.encode(), row.signature):
        raise LedgerError(f"row {seq} of the ledger is not signed by this site's key")
    fields = row.fields
    if fields["seq"] != seq or fields["previous"] != head:
        raise LedgerError(f"row {seq} of the ledger does not follow the one before")
    return fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A request as the rows left it: ``events`` are what counts now, none if abandoned."""

    request_id: str
    state: State
    reserved: tuple[Event, ...]
    events: tuple[Event, ...]
    purpose: str
    origin: str
    reason: str = ""


@dataclass(kw_only=True, slots=True)
class Replay:
    """The state of a ledger after its rows so far; `extend` checks each row and applies it."""

    public_key: str
    length: int = 0
    head: str = GENESIS
    hashes: list[str] = field(default_factory=list[str])
    opening: dict[str, object] = field(default_factory=dict[str, object])
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    _totals: dict[State, dict[Event, int]] = field(
        default_factory=lambda: {State.reserved: {}, State.committed: {}}
    )

    def extend(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Append ``rows`` (with their positions in the file).

        Raises:
            LedgerError: A row is missing, changed, out of order, unsigned or makes no sense.
        """
        for seq, row in rows:
            try:
                fields = follow(
                    seq, row, length=self.length, head=self.head, public_key=self.public_key
                )
                self._apply(seq, fields)
            except (KeyError, TypeError, ValueError) as error:
                raise LedgerError(f"row {seq} of the ledger cannot be understood") from error
            self.length, self.head = seq, row.hash
            self.hashes.append(row.hash)

    def _apply(self, seq: int, fields: dict[str, object]) -> None:
        kind = Kind(fields["kind"])
        if (kind is Kind.opened) != (seq == 1):
            raise LedgerError(f"row {seq} of the ledger is of the wrong kind")
        if kind is Kind.opened:
            self.opening = fields
            return
        request_id = str(fields["request_id"])
        before = self.entries.get(request_id)
        if kind is Kind.reserve:
            if before is not None:
                raise LedgerError(f"row {seq} of the ledger reserves a request twice")
            events = load_events(fields["events"])
            self.entries[request_id] = Entry(
                request_id=request_id,
                state=State.reserved,
                reserved=events,
                events=events,
                purpose=str(fields["purpose"]),
                origin=str(fields["origin"]),
            )
            self._add(State.reserved, events, 1)
            return
        if before is None or before.state is not State.reserved:
            raise LedgerError(f"row {seq} of the ledger closes a request that is not open")
        committed = kind is Kind.commit
        events = load_events(fields["events"]) if committed else ()
        if not within(events, before.reserved):
            raise LedgerError(f"row {seq} of the ledger commits more than was reserved")
        self._add(State.reserved, before.reserved, -1)
        self._add(State.committed, events, 1)
        self.entries[request_id] = Entry(
            request_id=request_id,
            state=State.committed if committed else State.abandoned,
            reserved=before.reserved,
            events=events,
            purpose=before.purpose,
            origin=before.origin,
            reason=str(fields["reason"]),
        )

    def spent(self) -> tuple[Event, ...]:
        """Every event that counts: committed, or reserved and still open."""
        return tuple(event for entry in self.entries.values() for event in entry.events)

    def merged(self, *states: State) -> tuple[Event, ...]:
        """The counted events in these states, equal mechanisms counted together."""
        counts: dict[Event, int] = {}
        for state in states:
            for one, count in self._totals[state].items():
                counts[one] = counts.get(one, 0) + count
        return tuple(repeat(one, count) for one, count in counts.items() if count)

    def _add(self, state: State, events: Sequence[Event], sign: int) -> None:
        totals = self._totals[state]
        for event in events:
            one, count = split(event)
            totals[one] = totals.get(one, 0) + sign * count

    def num_open(self) -> int:
        """How many requests are reserved and neither committed nor abandoned."""
        return sum(entry.state is State.reserved for entry in self.entries.values())


def dump_events(events: Sequence[Event]) -> list[dict[str, object]]:
    """Events as they stand in a row."""
    return [dump(event) for event in events]


def load_events(value: object) -> tuple[Event, ...]:
    """Events as they stand in a row, back."""
    if not isinstance(value, list):
        raise ValueError("events is not a list")
    return tuple(load(fields) for fields in cast("list[dict[str, object]]", value))
