"""All ledgers of one site: cohorts that share patients are charged together.

A patient in two cohorts is touched by the work on both, so each cohort's ledger also counts the
work on every cohort that overlaps with it. That bounds the shared patients and overestimates the
others, whichever cohort was there first.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import Unit
from common.errors import BudgetExceeded
from common.privacy.budget import Budget
from common.privacy.chain import Entry, State
from common.privacy.cohort import fingerprint_of, patient_hashes
from common.privacy.events import Event, patient_level
from common.privacy.keys import SiteKey
from common.privacy.ledger import Cohort, Ledger, Reservation
from common.privacy.statement import SpendStatement
from common.privacy.store import translated
from common.privacy.verification import read_cohort

KEY_NAME = "site.key"
_NO_CAP = Budget(epsilon=math.inf, delta=0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerBook:
    """The folder that holds a site's ledgers, and the site's key."""

    folder: Path
    key: SiteKey

    @classmethod
    def at(cls, folder: Path) -> LedgerBook:
        """The book in ``folder`` with the key ``site.key`` there; made only if no ledger is there.

        Raises:
            LedgerError: The key cannot be read or made. A new key beside old ledgers would not
                know their patients, and count from zero.
        """
        with translated("be opened"):
            folder.mkdir(parents=True, exist_ok=True)
            is_new = not any(folder.glob("*.sqlite")) and not any(folder.glob("*.head"))
        path = folder / KEY_NAME
        return cls(folder=folder, key=(SiteKey.load_or_create if is_new else SiteKey.load)(path))

    def open(
        self, patient_ids: Iterable[str], *, unit: Unit = Unit.patient, images_per_patient: int = 1
    ) -> BookedLedger:
        """The ledger of these patients, made if new, with all earlier work on any of them."""
        hashes = patient_hashes(patient_ids, self.key.cohort_key)
        cohort = Cohort(
            fingerprint=fingerprint_of(hashes),
            unit=unit,
            images_per_patient=images_per_patient,
            patient_hashes=hashes,
        )
        return self.open_booked(cohort)

    def open_booked(self, cohort: Cohort) -> BookedLedger:
        """As `open`, where the patients are known by their keyed hashes only."""
        with self.exclusive():
            ledger = BookedLedger(book=self, own=self.open_cohort(cohort))
            try:
                ledger.catch_up()
            except BaseException:
                ledger.close()
                raise
        return ledger

    def open_cohort(self, cohort: Cohort) -> Ledger:
        """The ledger of exactly this cohort."""
        name = f"{cohort.fingerprint[:24]}.sqlite"
        return Ledger.open(
            self.folder / name,
            cohort=cohort.fingerprint,
            unit=cohort.unit,
            images_per_patient=cohort.images_per_patient,
            patient_hashes=cohort.patient_hashes,
            key=self.key,
        )

    def overlapping(self, cohort: Cohort) -> tuple[Cohort, ...]:
        """Every other cohort of this site that shares a patient with ``cohort``."""
        patients = set(cohort.patient_hashes)
        found: list[Cohort] = []
        for path in sorted(self.folder.glob("*.sqlite")):
            other = read_cohort(path, self.key)
            if other is None or other.fingerprint == cohort.fingerprint:
                continue
            if patients.intersection(other.patient_hashes):
                found.append(other)
        return tuple(found)

    def num_known(self, patient_ids: Iterable[str]) -> int:
        """How many of these patients a ledger of this book is about.

        Raises:
            LedgerError: A ledger cannot be read.
        """
        known: set[str] = set()
        for path in sorted(self.folder.glob("*.sqlite")):
            cohort = read_cohort(path, self.key)
            known.update(cohort.patient_hashes if cohort else ())
        return len(known.intersection(patient_hashes(patient_ids, self.key.cohort_key)))

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """Nobody else opens or reserves in this folder meanwhile."""
        with translated("be opened"):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "book.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with translated("be locked"):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


@dataclass(frozen=True, kw_only=True, slots=True)
class BookedLedger:
    """A cohort's ledger whose every entry is also charged to the cohorts that overlap with it."""

    book: LedgerBook
    own: Ledger

    def __enter__(self) -> BookedLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.own.close()

    def reserve(
        self, *, request_id: str, events: Sequence[Event], purpose: str, budget: Budget
    ) -> Reservation:
        """As `Ledger.reserve`, within the cap of every overlapping cohort too."""
        charged: list[Ledger] = []
        foreign_id = f"{self.own.cohort.fingerprint}:{request_id}"
        with self.book.exclusive(), self._others() as others:
            try:
                for other in others:
                    reservation = other.reserve(
                        request_id=foreign_id,
                        events=[_as_seen(event, self.own.cohort, other.cohort) for event in events],
                        purpose=purpose,
                        budget=replace(budget, unit=other.cohort.unit),
                        origin=self.own.cohort.fingerprint,
                    )
                    if reservation.fresh:
                        charged.append(other)
                return self.own.reserve(
                    request_id=request_id, events=events, purpose=purpose, budget=budget
                )
            except BudgetExceeded:
                for other in charged:
                    other.abandon(foreign_id, "an overlapping cohort refused; no data read")
                raise

    def commit(self, request_id: str, events: Sequence[Event] | None = None) -> Reservation:
        """As `Ledger.commit`, in every overlapping cohort too."""
        with self.book.exclusive():
            done = self.own.commit(request_id, events)
            self._mirror_ends()
        return done

    def abandon(self, request_id: str, reason: str) -> Reservation:
        """As `Ledger.abandon`, in every overlapping cohort too."""
        with self.book.exclusive():
            given_back = self.own.abandon(request_id, reason)
            self._mirror_ends()
        return given_back

    def statement(self, budget: Budget) -> SpendStatement:
        """As `Ledger.statement`."""
        return self.own.statement(budget)

    def epsilon(self, delta: float, accountant: str = "pld") -> float:
        """As `Ledger.epsilon`."""
        return self.own.epsilon(delta, accountant)

    def events(self) -> tuple[Event, ...]:
        """As `Ledger.events`."""
        return self.own.events()

    def entries(self) -> tuple[Entry, ...]:
        """As `Ledger.entries`."""
        return self.own.entries()

    def catch_up(self) -> None:
        """Bring in what was done on overlapping cohorts before this one knew of it."""
        with self._others() as others:
            for other in others:
                _copy(source=other, target=self.own)

    def _mirror_ends(self) -> None:
        with self._others() as others:
            for other in others:
                _copy(source=self.own, target=other)

    @contextmanager
    def _others(self) -> Generator[tuple[Ledger, ...]]:
        opened: list[Ledger] = []
        try:
            # Not one expression: if the third cannot be opened, the first two are closed.
            for cohort in self.book.overlapping(self.own.cohort):
                opened.append(self.book.open_cohort(cohort))  # noqa: PERF401
            yield tuple(opened)
        finally:
            for ledger in opened:
                ledger.close()


def _as_seen(event: Event, source: Cohort, target: Cohort) -> Event:
    if source.unit is Unit.image and target.unit is Unit.patient:
        return patient_level(event, source.images_per_patient)
    return event


def _copy(*, source: Ledger, target: Ledger) -> None:
    """Charge ``target`` with what was really done on ``source``; repeating adds nothing."""
    origin = source.cohort.fingerprint
    known = {entry.request_id: entry for entry in target.entries()}
    for entry in source.entries():
        request_id = f"{origin}:{entry.request_id}"
        there = known.get(request_id)
        if entry.origin or (there is None and entry.state is State.abandoned):
            continue
        if there is not None and there.state is not State.reserved:
            continue
        if there is None:
            target.reserve(
                request_id=request_id,
                events=[_as_seen(event, source.cohort, target.cohort) for event in entry.reserved],
                purpose=entry.purpose,
                budget=replace(_NO_CAP, unit=target.cohort.unit),
                origin=origin,
            )
        if entry.state is State.committed:
            done = [_as_seen(event, source.cohort, target.cohort) for event in entry.events]
            target.commit(request_id, done)
        if entry.state is State.abandoned:
            target.abandon(request_id, entry.reason)
