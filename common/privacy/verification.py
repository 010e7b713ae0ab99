"""Reading a ledger without changing it: is it whole, and what does it say."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.config import Unit
from common.errors import LedgerError
from common.privacy import head
from common.privacy.chain import Entry, Replay, State
from common.privacy.events import Event
from common.privacy.keys import SiteKey
from common.privacy.ledger import Cohort, check_head, check_patients
from common.privacy.store import Store, translated


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What verifying a ledger found.

    Attributes:
        problems: What is wrong, in words; empty if nothing was found.
        length: Rows that hold.
        head: Hash of the last of them.
        entries: The requests in these rows.
        spent: What counts as spent in these rows, equal mechanisms together.
        cohort: What the ledger is about; absent if its first row does not hold.
    """

    problems: tuple[str, ...]
    length: int
    head: str
    entries: tuple[Entry, ...]
    spent: tuple[Event, ...]
    cohort: Cohort | None

    @property
    def ok(self) -> bool:
        """Whether nothing wrong was found."""
        return not self.problems


def verify(
    path: Path, *, public_key: str | None = None, timeout_seconds: float = 10.0
) -> Verification:
    """Check every row, signature, the head and the file's pages of the ledger at ``path``.

    Finds deleted, changed, reordered and forged rows, missing rows at the end, and damage. Cannot
    find that the file and its head were together set back to an earlier state by someone who may
    write both: the statements that the server keeps find that.

    Args:
        path: The ledger's file.
        public_key: The site's key as known elsewhere; by default that of the key file beside the
            ledger, so that verifying somewhere else needs this argument.
        timeout_seconds: How long to wait for a writer.
    """
    replay = Replay(public_key="")
    problems: list[str] = []
    cohort: Cohort | None = None
    try:
        replay.public_key = public_key or SiteKey.load(path.with_suffix(".key")).public_key
        known = head.read(path, replay.public_key)
        with _reading(path, timeout_seconds) as store:
            store.check_integrity()
            with translated("be read"):
                store.check_schema()
            replay.extend(store.rows_after(0))
            if known is None:
                known = head.read(path, replay.public_key)
                replay.extend(store.rows_after(replay.length))
            if replay.length == 0:
                raise LedgerError("the ledger is empty")
            check_head(replay, known)
            check_patients(replay, store)
            cohort = _cohort(replay, store.patients())
    except (LedgerError, ValueError) as error:
        problems.append(str(error))
    return Verification(
        problems=tuple(problems),
        length=replay.length,
        head=replay.head,
        entries=tuple(replay.entries.values()),
        spent=replay.merged(State.reserved, State.committed),
        cohort=cohort,
    )


def read_cohort(path: Path, key: SiteKey) -> Cohort:
    """What the ledger at ``path`` is about, by its first row and its patient hashes.

    Raises:
        LedgerError: These are damaged or not of this site.
    """
    first = Replay(public_key=key.public_key)
    with _reading(path, 10.0) as store:
        first.extend(store.rows_after(0)[:1])
        if first.length == 0:
            raise LedgerError("the ledger is empty")
        check_patients(first, store)
        return _cohort(first, store.patients())


@contextmanager
def _reading(path: Path, timeout_seconds: float) -> Generator[Store]:
    store = Store(path, timeout_seconds=timeout_seconds, read_only=True)
    try:
        yield store
    finally:
        store.close()


def _cohort(replay: Replay, patient_hashes: tuple[str, ...]) -> Cohort:
    size = replay.opening["images_per_patient"]
    if not isinstance(size, int):
        raise LedgerError("row 1 of the ledger cannot be understood")
    return Cohort(
        fingerprint=str(replay.opening["cohort"]),
        unit=Unit(replay.opening["unit"]),
        images_per_patient=size,
        patient_hashes=patient_hashes,
    )
