"""The privacy ledger: one cohort's spend, recorded before anything is computed.

Guarantees: `Ledger.reserve` returns only after the reservation is on disk, and refuses if the cap
would be passed, whatever other processes do; a reservation that nobody closed counts as spent; a
ledger that cannot be read, written or trusted raises `LedgerError`, and nothing may be trained.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from common.config import Unit
from common.errors import BudgetExceeded, LedgerError
from common.privacy import accountants, calibration, head
from common.privacy.budget import Budget
from common.privacy.chain import (
    Entry,
    Kind,
    Replay,
    Row,
    State,
    dump_events,
    make_row,
)
from common.privacy.cohort import fingerprint_of
from common.privacy.events import Event, rests_on_others, within
from common.privacy.keys import SiteKey
from common.privacy.statement import SpendStatement
from common.privacy.store import SCHEMA_VERSION, Store, translated


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """What a ledger is about; stays at the site except for the fingerprint and unit.

    Attributes:
        fingerprint: `cohort.fingerprint` of the patients.
        unit: Whose presence the events hide.
        images_per_patient: For image-level ledgers, the largest number of images of one patient.
        patient_hashes: Keyed hashes of the patients, where overlaps are to be found.
    """

    fingerprint: str
    unit: Unit = Unit.patient
    images_per_patient: int = 1
    patient_hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.fingerprint:
            raise ValueError("cohort='': must be the fingerprint of its patients")
        if self.images_per_patient < 1:
            raise ValueError(f"images_per_patient={self.images_per_patient}: must be at least 1")
        if self.patient_hashes and fingerprint_of(self.patient_hashes) != self.fingerprint:
            raise ValueError("patient_hashes: their fingerprint is not the cohort's")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What the ledger holds for a request; ``fresh`` if this very call made it."""

    request_id: str
    state: State
    events: tuple[Event, ...]
    purpose: str
    fresh: bool


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """An open ledger. Use `Ledger.open`, as a context manager; threads may share one."""

    def __init__(
        self,
        path: Path,
        *,
        cohort: Cohort,
        key: SiteKey,
        timeout_seconds: float = 10.0,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._path, self._key, self._clock = path, key, clock
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._replay = Replay(public_key=key.public_key)
        known = head.read(path, key.public_key)
        self._store = Store(path, timeout_seconds=timeout_seconds)
        try:
            self._prepare(cohort, known)
        except BaseException:
            self._store.close()
            raise
        self.cohort = cohort

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        cohort: str,
        unit: Unit = Unit.patient,
        images_per_patient: int = 1,
        patient_hashes: Iterable[str] = (),
        key: SiteKey | None = None,
        timeout_seconds: float = 10.0,
        clock: Callable[[], datetime] = _utc_now,
    ) -> Ledger:
        """Open the ledger at ``path``, verifying it; make it if neither it nor its head exists.

        Args:
            path: The ledger's file; its head lies beside it under the suffix ``.head``.
            cohort: Fingerprint of the patients; an existing ledger must be about the same.
            unit: Whose presence the events hide; an existing ledger must agree.
            images_per_patient: For image-level ledgers, the most images one patient has.
            patient_hashes: `cohort.patient_hashes`, needed only to detect overlapping cohorts.
            key: The site's key; by default the file with suffix ``.key`` beside the ledger.
            timeout_seconds: How long to wait for another process before refusing.
            clock: Source of the times in the rows.

        Raises:
            LedgerError: The ledger cannot be opened, is damaged, was tampered with or is about
                another cohort.
        """
        with translated("be opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            exists = path.exists() or head.path_of(path).exists()
        if key is None:
            key_path = path.with_suffix(".key")
            key = SiteKey.load(key_path) if exists else SiteKey.load_or_create(key_path)
        about = Cohort(
            fingerprint=cohort,
            unit=unit,
            images_per_patient=images_per_patient,
            patient_hashes=tuple(sorted(set(patient_hashes))),
        )
        return cls(path, cohort=about, key=key, timeout_seconds=timeout_seconds, clock=clock)

    def _prepare(self, cohort: Cohort, known: head.Head | None) -> None:
        with self._store.writing():
            if self._store.prepare():
                if known is not None:
                    raise LedgerError("the ledger is gone or empty, but its head is there")
                self._store.add_patients(cohort.patient_hashes)
                self._store.append(1, self._row(Kind.opened, 1, _opening(cohort)))
        self._store.check_integrity()
        self._refresh()
        if known is None:
            # Another process may just have made the ledger and its head, and have gone on.
            known = head.read(self._path, self._key.public_key)
            self._refresh()
        check_head(self._replay, known)
        _check_cohort(self._replay, self._store, cohort)
        self._advance_head()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Open reservations stay, and count as spent."""
        with self._lock:
            self._store.close()

    def reserve(
        self,
        *,
        request_id: str,
        events: Sequence[Event],
        purpose: str,
        budget: Budget,
        origin: str = "",
    ) -> Reservation:
        """Record ``events`` as spent before they are computed, or refuse.

        A second call with the same ``request_id`` and events returns the first reservation, in
        whatever state it is by now, and reserves nothing.

        Args:
            request_id: Names this piece of work for ever, e.g. run, round and site.
            events: What will be released at most.
            purpose: A few words for the reader of the ledger; no patient data.
            budget: The cohort's cap.
            origin: The cohort that is really worked on, when charged here for an overlap.

        Raises:
            BudgetExceeded: The cohort's epsilon would pass the cap; nothing was recorded.
            LedgerError: Nothing could be recorded, or the id was used for something else.
        """
        if not request_id:
            raise ValueError("request_id='': must name the request")
        if budget.unit is not self.cohort.unit:
            raise ValueError(
                f"budget.unit={budget.unit.value}: the ledger counts by {self.cohort.unit.value}"
            )
        asked = tuple(events)
        with self._lock, translated("record"):
            with self._store.writing():
                self._refresh()
                entry = self._replay.entries.get(request_id)
                spent = self._replay.merged(State.reserved, State.committed)
                allowed = entry is not None or budget.allows([*spent, *asked])
                if entry is None and allowed:
                    fields = _reserve_fields(asked, purpose=purpose, origin=origin, budget=budget)
                    self._append(Kind.reserve, {"request_id": request_id, **fields})
            if not allowed:
                raise BudgetExceeded(_refusal(budget, spent, asked))
            self._published()
            found = self._replay.entries[request_id]
            if found.reserved != asked:
                raise LedgerError("request_id was used before for other events; use a new one")
            return _reservation(found, fresh=entry is None)

    def commit(self, request_id: str, events: Sequence[Event] | None = None) -> Reservation:
        """Record that the reserved events (or only ``events``, no more than these) were done.

        Raises:
            LedgerError: There is no such open reservation, or more was done than reserved; the
                reservation then stays, counted as spent.
        """
        with self._lock, translated("record"):
            with self._store.writing():
                entry = self._open_entry(request_id)
                done = entry.reserved if events is None else tuple(events)
                if entry.state is State.committed:
                    if events is not None and entry.events != done:
                        raise LedgerError("the request was committed before with other events")
                    return _reservation(entry, fresh=False)
                if entry.state is State.abandoned:
                    raise LedgerError("the request was abandoned and cannot be committed")
                if not within(done, entry.reserved):
                    raise LedgerError("more was done than reserved; the reservation stays")
                fields = {"request_id": request_id, "events": dump_events(done), "reason": ""}
                self._append(Kind.commit, fields)
            self._published()
            return _reservation(self._replay.entries[request_id], fresh=True)

    def abandon(self, request_id: str, reason: str) -> Reservation:
        """Give back a reservation whose work never read any patient's data.

        Raises:
            LedgerError: There is no such open reservation.
        """
        if not reason.strip():
            raise ValueError("reason='': must say why no data was read")
        with self._lock, translated("record"):
            with self._store.writing():
                entry = self._open_entry(request_id)
                if entry.state is State.abandoned:
                    return _reservation(entry, fresh=False)
                if entry.state is State.committed:
                    raise LedgerError("the request was committed and cannot be abandoned")
                self._append(Kind.abandon, {"request_id": request_id, "reason": reason})
            self._published()
            return _reservation(self._replay.entries[request_id], fresh=True)

    def entries(self) -> tuple[Entry, ...]:
        """Every request so far, in order."""
        with self._lock:
            self._refresh()
            return tuple(self._replay.entries.values())

    def events(self) -> tuple[Event, ...]:
        """Every event that counts as spent, open reservations included."""
        with self._lock:
            self._refresh()
            return self._replay.spent()

    def epsilon(self, delta: float, accountant: str | accountants.Accountant = "pld") -> float:
        """Epsilon of everything that counts as spent."""
        with self._lock:
            self._refresh()
            spent = self._replay.merged(State.reserved, State.committed)
        by = accountants.build(accountant) if isinstance(accountant, str) else accountant
        return by.epsilon(spent, delta)

    def remaining_rounds(self, budget: Budget, recipe: Sequence[Event]) -> int:
        """How many more times ``recipe`` would be granted."""
        with self._lock:
            self._refresh()
            spent = self._replay.merged(State.reserved, State.committed)
        return calibration.remaining_rounds(budget=budget, spent=spent, recipe=recipe)

    def statement(self, budget: Budget) -> SpendStatement:
        """The signed spend, measured as ``budget`` says, at the ledger's present head."""
        with self._lock:
            self._refresh()
            replay = self._replay
            length, row_hash, num_open = replay.length, replay.head, replay.num_open()
            spent = replay.merged(State.reserved, State.committed)
            committed = replay.merged(State.committed)
            num_events = sum(len(entry.events) for entry in replay.entries.values())
        statement = SpendStatement(
            cohort=self.cohort.fingerprint,
            epsilon=budget.spent(spent),
            epsilon_committed=budget.spent(committed),
            delta=budget.delta,
            unit=self.cohort.unit,
            accountant=budget.accountant,
            adjacency=accountants.ADJACENCY,
            num_events=num_events,
            num_open=num_open,
            length=length,
            head=row_hash,
            public_key=self._key.public_key,
            epsilon_alone=budget.spent_alone(spent) if rests_on_others(spent) else None,
        )
        return statement.signed(self._key)

    def patient_hashes(self) -> tuple[str, ...]:
        """Keyed hashes of the cohort's patients. They stay at the site."""
        with self._lock:
            return self._store.patients()

    def _open_entry(self, request_id: str) -> Entry:
        self._refresh()
        entry = self._replay.entries.get(request_id)
        if entry is None:
            raise LedgerError("the request was never reserved")
        return entry

    def _refresh(self) -> None:
        if os.getpid() != self._process:
            raise LedgerError("the ledger was opened by another process; open it again here")
        replay = self._replay
        if replay.length and self._store.hash_at(replay.length) != replay.head:
            raise LedgerError("the ledger's rows were changed while it was open")
        replay.extend(self._store.rows_after(replay.length))

    def _append(self, kind: Kind, fields: Mapping[str, object]) -> None:
        seq = self._replay.length + 1
        self._store.append(seq, self._row(kind, seq, fields))

    def _row(self, kind: Kind, seq: int, fields: Mapping[str, object]) -> Row:
        common = {
            "seq": seq,
            "kind": kind.value,
            "previous": self._replay.head,
            "time": self._clock().isoformat(),
        }
        return make_row({**common, **fields}, self._key)

    def _published(self) -> None:
        # Reads back what the transaction made durable, then signs it as the head.
        self._refresh()
        self._advance_head()

    def _advance_head(self) -> None:
        head.advance(
            self._path, length=self._replay.length, row_hash=self._replay.head, key=self._key
        )


def _opening(cohort: Cohort) -> dict[str, object]:
    return {
        "cohort": cohort.fingerprint,
        "unit": cohort.unit.value,
        "images_per_patient": cohort.images_per_patient,
        "num_patient_hashes": len(cohort.patient_hashes),
        "adjacency": accountants.ADJACENCY,
        "schema": SCHEMA_VERSION,
    }


def _reserve_fields(
    events: Sequence[Event], *, purpose: str, origin: str, budget: Budget
) -> dict[str, object]:
    cap = budget.epsilon if budget.epsilon < float("inf") else None
    return {
        "events": dump_events(events),
        "purpose": purpose,
        "origin": origin,
        "budget": {"epsilon": cap, "delta": budget.delta, "accountant": budget.accountant},
    }


def _reservation(entry: Entry, *, fresh: bool) -> Reservation:
    return Reservation(
        request_id=entry.request_id,
        state=entry.state,
        events=entry.events if entry.state is State.committed else entry.reserved,
        purpose=entry.purpose,
        fresh=fresh,
    )


def _refusal(budget: Budget, spent: Sequence[Event], asked: Sequence[Event]) -> str:
    budget = budget.refusing([*spent, *asked]) or budget
    before, after = budget.spent(spent), budget.spent([*spent, *asked])
    if after <= budget.epsilon:  # the other cap is what refuses
        return (
            f"asked would raise epsilon without trust in other sites to "
            f"{budget.spent_alone([*spent, *asked]):.4g}, past the cap of "
            f"{budget.epsilon_alone:.4g} (epsilon_alone; delta {budget.delta:g}, unit "
            f"{budget.unit.value}, accountant {budget.accountant})"
        )
    steps = calibration.remaining_rounds(
        budget=budget, spent=spent, recipe=calibration.one_of_each(asked)
    )
    return (
        f"asked would raise epsilon from {before:.4g} to {after:.4g}, past the cap of "
        f"{budget.epsilon:.4g} (delta {budget.delta:g}, unit {budget.unit.value}, accountant "
        f"{budget.accountant}); {max(0.0, budget.epsilon - before):.4g} is left: 0 more rounds of "
        f"this recipe ({calibration.describe(asked)}) fit, and {steps} single steps of it"
    )


def check_head(replay: Replay, known: head.Head | None) -> None:
    """Refuse rows that end before ``known``, or differ there."""
    if known is None:
        if replay.length > 1:
            raise LedgerError("the ledger's head is missing")
        return
    if replay.length < known.length:
        raise LedgerError(
            f"the ledger ends at row {replay.length}, its head says {known.length}: "
            "rows are missing"
        )
    if known.length < 1 or replay.hashes[known.length - 1] != known.hash:
        raise LedgerError("the ledger's head does not belong to its rows")


def _check_cohort(replay: Replay, store: Store, cohort: Cohort) -> None:
    opening = replay.opening
    if opening.get("cohort") != cohort.fingerprint:
        raise LedgerError("the ledger is about another cohort")
    if opening.get("unit") != cohort.unit.value:
        raise LedgerError(f"the ledger counts by {opening.get('unit')}, not {cohort.unit.value}")
    if opening.get("images_per_patient") != cohort.images_per_patient:
        raise LedgerError("the ledger was opened with another images_per_patient")
    check_patients(replay, store)


def check_patients(replay: Replay, store: Store) -> None:
    """Refuse stored patient hashes that are not those of the cohort."""
    stored = store.patients()
    if len(stored) != replay.opening.get("num_patient_hashes"):
        raise LedgerError("patient hashes are missing from the ledger")
    if stored and fingerprint_of(stored) != replay.opening.get("cohort"):
        raise LedgerError("the patient hashes in the ledger were changed")
