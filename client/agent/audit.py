"""The audit log: who asked what, what was decided, and what it cost; nobody can change it unseen.

It is a chain of signed rows in the file format of the ledgers (`common.privacy.chain`), with kinds
of row that no ledger has. A row about a training names the head of the ledger after it, so that
neither can be set back without the other. No row holds a patient, a path or free text of a server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, cast

from common.errors import LedgerError
from common.privacy import head
from common.privacy.chain import GENESIS, follow, make_row
from common.privacy.keys import SiteKey
from common.privacy.store import Store

FILE_NAME = "audit.sqlite"
SCHEMA = "fedward.audit/1"
_TIMEOUT_SECONDS = 10.0


class Kind(Enum):
    """What a row records; none of these is a kind of row of a ledger."""

    opened = "audit_opened"
    started = "agent_started"
    stopped = "agent_stopped"
    asked = "asked"
    answered = "answered"
    policy = "policy_changed"
    roster = "roster_pinned"
    approved = "bundle_approved"
    revoked = "bundle_revoked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row: its place, its time (UTC), its kind and what the kind adds."""

    seq: int
    time: str
    kind: Kind
    fields: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"seq": self.seq, "time": self.time, "kind": self.kind.value, **self.fields}


@dataclass(kw_only=True, slots=True)
class _Chain:
    """The rows so far, each checked against the one before."""

    public_key: str
    hashes: list[str] = field(default_factory=list[str])

    @property
    def length(self) -> int:
        return len(self.hashes)

    @property
    def last(self) -> str:
        return self.hashes[-1] if self.hashes else GENESIS

    def take_in(self, store: Store) -> list[Record]:
        """Checks the rows that ``store`` has beyond those known, and returns them."""
        if self.hashes and store.hash_at(self.length) != self.last:
            raise LedgerError("the audit log's rows were changed while it was open")
        found: list[Record] = []
        for seq, row in store.rows_after(self.length):
            try:
                fields = follow(
                    seq, row, length=self.length, head=self.last, public_key=self.public_key
                )
                record = _record(fields)
            except LedgerError as error:
                words = str(error).replace("the ledger", "the audit log")
                raise LedgerError(words) from error
            except (KeyError, TypeError, ValueError) as error:
                raise LedgerError(f"row {seq} of the audit log cannot be understood") from error
            if (record.kind is Kind.opened) != (seq == 1):
                raise LedgerError(f"row {seq} of the audit log is of the wrong kind")
            found.append(record)
            self.hashes.append(row.hash)
        return found

    def check_head(self, known: head.Head | None) -> None:
        if known is None:
            if self.length > 1:
                raise LedgerError("the audit log's head is missing")
            return
        if self.length < known.length:
            raise LedgerError(
                f"the audit log ends at row {self.length}, its head says {known.length}: "
                "rows are missing"
            )
        if known.length < 1 or self.hashes[known.length - 1] != known.hash:
            raise LedgerError("the audit log's head does not belong to its rows")


def _record(fields: dict[str, object]) -> Record:
    own = {"seq", "previous", "time", "kind"}
    return Record(
        seq=cast("int", fields["seq"]),
        time=str(fields["time"]),
        kind=Kind(fields["kind"]),
        fields={name: value for name, value in fields.items() if name not in own},
    )


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """An open log. Several processes and threads may add to one.

    Guarantees:
        A row is on disk when `append` returns; what cannot be appended raises, and whoever asked
        must then refuse.
    """

    def __init__(
        self, path: Path, *, key: SiteKey, clock: Callable[[], datetime] = _utc_now
    ) -> None:
        self._path, self._key, self._clock = path, key, clock
        self._lock = threading.Lock()
        self._chain = _Chain(public_key=key.public_key)
        known = head.read(path, key.public_key)
        self._store = Store(path, timeout_seconds=_TIMEOUT_SECONDS)
        try:
            with self._store.writing():
                if self._store.prepare():
                    if known is not None:
                        raise LedgerError("the audit log is gone or empty, but its head is there")
                    self._add(Kind.opened, {"schema": SCHEMA})
            path.chmod(0o600)
            self._store.check_integrity()
            self._chain.take_in(self._store)
            if known is None:
                # Another process may just have made the log and its head, and have gone on.
                known = head.read(path, key.public_key)
                self._chain.take_in(self._store)
            self._chain.check_head(known)
            self._advance_head()
        except BaseException:
            self._store.close()
            raise

    def append(self, kind: Kind, fields: Mapping[str, object]) -> int:
        """Adds a row and returns its number.

        Raises:
            LedgerError: It could not be made durable, or the log is not what it was.
        """
        with self._lock:
            with self._store.writing():
                self._chain.take_in(self._store)
                self._add(kind, fields)
            self._chain.take_in(self._store)
            self._advance_head()
            return self._chain.length

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._store.close()

    def _add(self, kind: Kind, fields: Mapping[str, object]) -> None:
        seq = self._chain.length + 1
        common = {
            "seq": seq,
            "kind": kind.value,
            "previous": self._chain.last,
            "time": self._clock().isoformat(),
        }
        self._store.append(seq, make_row({**fields, **common}, self._key))

    def _advance_head(self) -> None:
        head.advance(
            self._path, length=self._chain.length, row_hash=self._chain.last, key=self._key
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReading:
    """What reading a log found: the rows that hold, and what is wrong, in words."""

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    length: int
    head: str


def read(path: Path, *, public_key: str, ledgers: Path | None = None) -> AuditReading:
    """The log at ``path``, every row checked, and against the ledgers in a folder if one is given.

    Finds deleted, changed, reordered and forged rows, missing rows at the end, and a ledger that
    is not the one that the log speaks of. As with a ledger, a log that was set back together with
    its head is found only where it names a later state of a ledger, or was shipped elsewhere.
    """
    chain = _Chain(public_key=public_key)
    records: list[Record] = []
    problems: list[str] = []
    try:
        known = head.read(path, public_key)
        store = Store(path, timeout_seconds=_TIMEOUT_SECONDS, read_only=True)
        try:
            store.check_integrity()
            store.check_schema()
            records = chain.take_in(store)
        finally:
            store.close()
        if not records:
            raise LedgerError("the audit log is empty")
        chain.check_head(known)
        if ledgers is not None:
            problems += _strangers(records, ledgers)
    except LedgerError as error:
        problems.append(str(error))
    return AuditReading(
        records=tuple(records), problems=tuple(problems), length=chain.length, head=chain.last
    )


def _strangers(records: list[Record], ledgers: Path) -> list[str]:
    """Rows that name a state which the ledger at hand never had."""
    problems: list[str] = []
    stores: dict[str, Store] = {}
    try:
        for record in records:
            joined = record.fields.get("ledger")
            if joined is None:
                continue
            name = f"{str(joined['cohort'])[:24]}.sqlite"
            if name not in stores:
                stores[name] = Store(
                    ledgers / name, timeout_seconds=_TIMEOUT_SECONDS, read_only=True
                )
            if stores[name].hash_at(joined["length"]) != joined["head"]:
                problems.append(f"row {record.seq}: the ledger has no such state; it was set back")
    finally:
        for store in stores.values():
            store.close()
    return problems
