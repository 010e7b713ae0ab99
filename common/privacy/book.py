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
from common.errors import BudgetExceeded, LedgerError
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
        path = self.folder / _file_name(cohort)
        with _naming(path):
            return Ledger.open(
                path,
                cohort=cohort.fingerprint,
                unit=cohort.unit,
                images_per_patient=cohort.images_per_patient,
                patient_hashes=cohort.patient_hashes,
                key=self.key,
            )

    def cohorts(self) -> tuple[Cohort, ...]:
        """What each ledger of this book is about.

        Raises:
            LedgerError: A ledger is gone, damaged or not this site's; the words name its file.
        """
        files = [*self.folder.glob("*.sqlite"), *self.folder.glob("*.head")]
        return tuple(
            self._cohort(path) for path in sorted({file.with_suffix(".sqlite") for file in files})
        )

    def overlapping(self, cohort: Cohort) -> tuple[Cohort, ...]:
        """Every other cohort of this site that shares a patient with ``cohort``."""
        patients = set(cohort.patient_hashes)
        return tuple(
            other
            for other in self.cohorts()
            if other.fingerprint != cohort.fingerprint
            and patients.intersection(other.patient_hashes)
        )

    def num_known(self, patient_ids: Iterable[str]) -> int:
        """How many of these patients a ledger of this book is about.

        Raises:
            LedgerError: A ledger cannot be read.
        """
        known = {patient for cohort in self.cohorts() for patient in cohort.patient_hashes}
        return len(known.intersection(patient_hashes(patient_ids, self.key.cohort_key)))

    def _cohort(self, path: Path) -> Cohort:
        with _naming(path):
            cohort = read_cohort(path, self.key)
            if path.name != _file_name(cohort):
                raise LedgerError("the ledger is about another cohort than its name says")
        return cohort

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
        """As `Ledger.reserve`, within the cap of every overlapping cohort too.

        What this cohort's ledger holds already was granted before: it is given again, and charged
        to an overlapping cohort that lacks it whatever its cap.
        """
        charged: list[tuple[Ledger, str]] = []
        with self.book.exclusive(), self._others() as others:
            granted = any(entry.request_id == request_id for entry in self.own.entries())
            try:
                for other in others:
                    if granted:
                        _copy(source=self.own, target=other)
                        continue
                    reservation = _Charges.between(self.own.cohort, other).reserve(
                        request_id=request_id, events=events, purpose=purpose, budget=budget
                    )
                    if reservation.fresh:
                        charged.append((other, reservation.request_id))
                return self.own.reserve(
                    request_id=request_id, events=events, purpose=purpose, budget=budget
                )
            except BudgetExceeded:
                for other, attempt in charged:
                    other.abandon(attempt, "an overlapping cohort refused; no data read")
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
        """Charge this cohort with the work on those that overlap, and these with its own.

        Only what is not charged yet: work done before one of them was known, or cut off by a crash.
        """
        with self._others() as others:
            for other in others:
                _copy(source=other, target=self.own)
                _copy(source=self.own, target=other)

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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Charges:
    """What one ledger holds of the work on another cohort that overlaps with its own.

    A charge that was given back counts nothing and stays closed. If the same work is granted later,
    another attempt at it is charged, under an id of its own.

    Attributes:
        source: The cohort that is worked on.
        target: The ledger that is charged.
        attempts: By the request's id in the source's ledger, the target's entries, in order.
    """

    source: Cohort
    target: Ledger
    attempts: dict[str, list[Entry]]

    @classmethod
    def between(cls, source: Cohort, target: Ledger) -> _Charges:
        """The charges as they stand in ``target`` now."""
        attempts: dict[str, list[Entry]] = {}
        for entry in target.entries():
            if entry.origin == source.fingerprint:
                name = entry.request_id.removeprefix(source.fingerprint)
                attempts.setdefault(name.partition(":")[2], []).append(entry)
        return cls(source=source, target=target, attempts=attempts)

    def counted(self, request_id: str) -> Entry | None:
        """The one charge for this request that counts, if there is one: the last attempt."""
        attempts = self.attempts.get(request_id)
        return attempts[-1] if attempts and attempts[-1].state is not State.abandoned else None

    def reserve(
        self, *, request_id: str, events: Sequence[Event], purpose: str, budget: Budget
    ) -> Reservation:
        """As `Ledger.reserve` by the terms of the target; what counts already is given again."""
        there = self.counted(request_id)
        return self.target.reserve(
            request_id=there.request_id if there else self._next_id(request_id),
            events=self._seen(events),
            purpose=purpose,
            budget=replace(budget, unit=self.target.cohort.unit),
            origin=self.source.fingerprint,
        )

    def follow(self, entry: Entry) -> None:
        """Charge what ``entry`` of the source's ledger says; repeating adds nothing."""
        there = self.counted(entry.request_id)
        if entry.state is State.abandoned:
            if there is not None and there.state is State.reserved:
                self.target.abandon(there.request_id, entry.reason)
            return
        charge = there or self.reserve(
            request_id=entry.request_id,
            events=entry.reserved,
            purpose=entry.purpose,
            budget=_NO_CAP,
        )
        if entry.state is State.committed and charge.state is State.reserved:
            self.target.commit(charge.request_id, self._seen(entry.events))

    def _next_id(self, request_id: str) -> str:
        before = len(self.attempts.get(request_id, ()))
        attempt = f"/{before + 1}" if before else ""
        return f"{self.source.fingerprint}{attempt}:{request_id}"

    def _seen(self, events: Sequence[Event]) -> tuple[Event, ...]:
        source = self.source
        if source.unit is Unit.image and self.target.cohort.unit is Unit.patient:
            return tuple(patient_level(event, source.images_per_patient) for event in events)
        return tuple(events)


def _copy(*, source: Ledger, target: Ledger) -> None:
    """Charge ``target`` with what was really done on ``source``; repeating adds nothing."""
    charges = _Charges.between(source.cohort, target)
    for entry in source.entries():
        if not entry.origin:
            charges.follow(entry)


def _file_name(cohort: Cohort) -> str:
    return f"{cohort.fingerprint[:24]}.sqlite"


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """A ledger that cannot be trusted is named by its file; its folder is nobody's business."""
    try:
        yield
    except LedgerError as error:
        raise LedgerError(f"{path.name}: {error}") from error
