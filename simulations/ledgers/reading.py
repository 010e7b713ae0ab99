"""What a ledger says, read without touching it: from a private copy of its files.

Opening SQLite's file where it lies would leave files beside it, even for reading. The copy is
taken as one moment of the ledger, also while a training writes to it.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from common.errors import LedgerError, UsageError
from common.privacy import head
from common.privacy.accountants import build
from common.privacy.book import KEY_NAME
from common.privacy.budget import Budget
from common.privacy.chain import Entry, Kind
from common.privacy.events import Event
from common.privacy.keys import SiteKey
from common.privacy.ledger import Cohort
from common.privacy.store import Store
from common.privacy.verification import Verification, verify

_ATTEMPTS = 50
_PAUSE_SECONDS = 0.01
_DEFAULT_DELTA = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request as it stands now, with the times (UTC) of its rows."""

    entry: Entry
    time: str
    closed: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A sound ledger. Holds no patient's hash but in ``cohort``, which is never shown.

    Attributes:
        name: The file's path below the folder that was asked for, without suffix.
        opened: When the ledger was made (UTC).
        budget: The last cap, delta and accountant that a request of this cohort was held to; where
            there is none yet, no cap at a delta of 1e-5.
        public_key: The key that signed every row.
    """

    name: str
    opened: str
    cohort: Cohort
    length: int
    head: str
    public_key: str
    requests: tuple[Request, ...]
    spent: tuple[Event, ...]
    budget: Budget

    @property
    def cap(self) -> float | None:
        """The cap, if there is one."""
        return self.budget.epsilon if math.isfinite(self.budget.epsilon) else None


def find(path: Path) -> dict[str, Path]:
    """The ledgers at ``path``, a ledger's file or a folder, by name.

    A head without its ledger counts: the ledger was deleted.

    Raises:
        UsageError: There is none.
    """
    if path.is_dir():
        found = {
            one.with_suffix(".sqlite") for end in (".sqlite", ".head") for one in _all(path, end)
        }
        if not found:
            raise UsageError(f"{path}: no ledger in this folder")
        return {one.relative_to(path).with_suffix("").as_posix(): one for one in sorted(found)}
    if path.suffix != ".sqlite":
        raise UsageError(f"{path}: neither a folder of ledgers nor a ledger's file (.sqlite)")
    if not path.exists() and not head.path_of(path).exists():
        raise UsageError(f"{path}: no such file")
    return {path.stem: path}


def _all(folder: Path, suffix: str) -> list[Path]:
    return [path for path in folder.rglob(f"*{suffix}") if path.is_file()]


def known_key(path: Path) -> str:
    """The public half of the key that lies beside the ledger.

    Raises:
        UsageError: There is no key.
        LedgerError: It cannot be read.
    """
    for key in (path.with_suffix(".key"), path.with_name(KEY_NAME)):
        if key.exists():
            return SiteKey.load(key).public_key
    raise UsageError(f"{path}: no key beside it; name the site's public key by --public-key")


def check(path: Path, public_key: str | None) -> Verification:
    """As `verify`, on a copy.

    Raises:
        UsageError: The key is not there or no key, or a file cannot be read.
    """
    try:
        key = _checked(public_key) or known_key(path)
    except LedgerError as error:
        return _unsound(str(error))
    if not path.exists():
        return _unsound("the ledger's file is gone, its head is there")
    with _copy(path) as copy:
        return verify(copy, public_key=key)


def _unsound(problem: str) -> Verification:
    return Verification(problems=(problem,), length=0, head="", entries=(), spent=(), cohort=None)


def read(
    name: str,
    path: Path,
    *,
    public_key: str | None = None,
    delta: float | None = None,
    accountant: str | None = None,
) -> Reading:
    """The ledger at ``path``, verified, measured by its own budget or as the arguments say.

    Raises:
        UsageError: It is not sound, or as `check`.
    """
    try:
        key = _checked(public_key) or known_key(path)
        if not path.exists():
            raise LedgerError("the ledger's file is gone, its head is there")
        with _copy(path) as copy:
            verification = verify(copy, public_key=key)
            if not verification.ok or verification.cohort is None:
                raise LedgerError("; ".join(verification.problems))
            rows = _fields_of_rows(copy)[: verification.length]
        budget = _budget(rows, verification.cohort, delta, accountant)
    except (LedgerError, ValueError) as error:
        raise error if isinstance(error, UsageError) else UsageError(f"{path}: {error}") from error
    return Reading(
        name=name,
        opened=str(rows[0]["time"]),
        cohort=verification.cohort,
        length=verification.length,
        head=verification.head,
        public_key=key,
        requests=_requests(rows, verification.entries),
        spent=verification.spent,
        budget=budget,
    )


def _checked(public_key: str | None) -> str | None:
    if public_key is not None and not re.fullmatch(r"[0-9a-f]{64}", public_key):
        raise UsageError(f"--public-key={public_key}: must be 64 hexadecimal digits")
    return public_key


def _fields_of_rows(copy: Path) -> list[dict[str, object]]:
    store = Store(copy, timeout_seconds=1.0, read_only=True)
    try:
        return [row.fields for _, row in store.rows_after(0)]
    finally:
        store.close()


def _requests(rows: list[dict[str, object]], entries: tuple[Entry, ...]) -> tuple[Request, ...]:
    began: dict[str, str] = {}
    closed: dict[str, str] = {}
    for fields in rows[1:]:
        times = began if fields["kind"] == Kind.reserve.value else closed
        times[str(fields["request_id"])] = str(fields["time"])
    return tuple(
        Request(entry=entry, time=began[entry.request_id], closed=closed.get(entry.request_id))
        for entry in entries
    )


def _budget(
    rows: list[dict[str, object]], cohort: Cohort, delta: float | None, accountant: str | None
) -> Budget:
    # What another cohort's ledger charged here was held to that cohort's terms.
    own = [f for f in rows[1:] if f["kind"] == Kind.reserve.value and not f["origin"]]
    terms = cast("dict[str, Any]", own[-1]["budget"]) if own else {}
    cap = terms.get("epsilon")
    name = str(accountant or terms.get("accountant", "pld"))
    build(name)
    return Budget(
        epsilon=math.inf if cap is None else cap,
        delta=terms.get("delta", _DEFAULT_DELTA) if delta is None else delta,
        accountant=name,
        unit=cohort.unit,
    )


@contextmanager
def _copy(path: Path) -> Generator[Path]:
    """Ledger and head as they were at one moment, in a folder that only this user can read."""
    contents = _at_one_moment((path, Path(f"{path}-wal"), head.path_of(path)))
    with tempfile.TemporaryDirectory(prefix="fedward-") as folder:
        for original, content in contents.items():
            if content is not None:
                (Path(folder) / original.name).write_bytes(content)
        yield Path(folder) / path.name


def _at_one_moment(paths: tuple[Path, ...]) -> dict[Path, bytes | None]:
    """Contents that did not change between two readings: so all of them stood at a time between.

    That is what a power cut at this time would have left, which SQLite recovers from.
    """
    before = {path: _content(path) for path in paths}
    for _ in range(_ATTEMPTS):
        time.sleep(_PAUSE_SECONDS)
        after = {path: _content(path) for path in paths}
        if after == before:
            return after
        before = after
    raise UsageError(f"{paths[0]}: is being written all the time; try again")


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
