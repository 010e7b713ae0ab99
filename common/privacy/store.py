"""The SQLite file under a ledger: durable, append-only, shared by several processes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from common.errors import LedgerError
from common.privacy.chain import Row

SCHEMA_VERSION = 1

# The unique indexes say in SQL what the chain's replay checks: one reserve and one end a request.
_SCHEMA = (
    """CREATE TABLE rows (
    seq INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    hash TEXT NOT NULL,
    signature TEXT NOT NULL,
    kind TEXT GENERATED ALWAYS AS (json_extract(text, '$.kind')) VIRTUAL,
    request_id TEXT GENERATED ALWAYS AS (json_extract(text, '$.request_id')) VIRTUAL
)""",
    "CREATE UNIQUE INDEX one_reserve ON rows (request_id) WHERE kind = 'reserve'",
    "CREATE UNIQUE INDEX one_end ON rows (request_id) WHERE kind IN ('commit', 'abandon')",
    "CREATE TABLE patients (hash TEXT PRIMARY KEY) WITHOUT ROWID",
    """CREATE TRIGGER rows_stay BEFORE DELETE ON rows
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END""",
    """CREATE TRIGGER rows_keep BEFORE UPDATE ON rows
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END""",
)

# From each older version to the next one; a step runs inside the transaction that opens the file.
_MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}


@contextmanager
def translated(action: str) -> Generator[None]:
    """Every failure of SQLite or the file system becomes a LedgerError that says what failed."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, OSError, UnicodeDecodeError, OverflowError) as error:
        # An OSError's own text may name a path, which must not leave the site.
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise LedgerError(
            f"the ledger cannot {action} ({words}); nothing may be trained"
        ) from error


class Store:
    """An open file. One connection; `writing` is the only way to change anything."""

    def __init__(self, path: Path, *, timeout_seconds: float, read_only: bool = False) -> None:
        mode = "ro" if read_only else "rwc"
        with translated("be opened"):
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=timeout_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            self._identity = None if read_only else _identity(path)
            self._path = path
            with translated("be opened"):
                if read_only:
                    self._connection.execute("PRAGMA query_only = ON")
                else:
                    self._make_durable(time.monotonic() + timeout_seconds)
        except BaseException:
            self._connection.close()
            raise

    def _make_durable(self, deadline: float) -> None:
        while True:
            try:
                (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                # Entering WAL mode does not wait: two that open a new file would refuse each other.
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        if mode != "wal":
            raise LedgerError(f"the ledger's journal is {mode}, not WAL; nothing may be trained")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA fullfsync = ON")

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._connection.close()

    @contextmanager
    def writing(self) -> Generator[None]:
        """One transaction that excludes every other writer; durable when it ends, or undone."""
        with translated("record"):
            if self._identity is not None and _identity(self._path) != self._identity:
                raise LedgerError(
                    "the ledger's file was replaced while open; nothing may be trained"
                )
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def prepare(self) -> bool:
        """Make the tables, or migrate older ones; whether the file was new. Inside `writing`."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            for statement in _SCHEMA:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            return True
        while version in _MIGRATIONS and version < SCHEMA_VERSION:
            _MIGRATIONS[version](self._connection)
            version += 1
            self._connection.execute(f"PRAGMA user_version = {version}")
        self.check_schema()
        return False

    def check_schema(self) -> None:
        """Refuse a file whose version, tables, indexes or triggers are not ours."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            raise LedgerError(
                f"the ledger has schema version {version}, this program knows {SCHEMA_VERSION}"
            )
        found = self._connection.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
        ).fetchall()
        if {sql for (sql,) in found} != set(_SCHEMA):
            raise LedgerError("the ledger's tables are not as this program made them")

    def check_integrity(self) -> None:
        """Refuse a file whose pages SQLite finds damaged."""
        with translated("be read"):
            answer = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if answer != ("ok",):
            raise LedgerError("the ledger's file is damaged")

    def rows_after(self, seq: int) -> list[tuple[int, Row]]:
        """Rows beyond position ``seq``, in order."""
        with translated("be read"):
            found = self._connection.execute(
                "SELECT seq, text, hash, signature FROM rows WHERE seq > ? ORDER BY seq", (seq,)
            ).fetchall()
        return [
            (_whole(n), Row(text=_str(t), hash=_str(h), signature=_str(s))) for n, t, h, s in found
        ]

    def hash_at(self, seq: int) -> str | None:
        """The hash stored at position ``seq``."""
        with translated("be read"):
            found = self._connection.execute(
                "SELECT hash FROM rows WHERE seq = ?", (seq,)
            ).fetchone()
        return None if found is None else _str(found[0])

    def append(self, seq: int, row: Row) -> None:
        """Add a row. Inside `writing`."""
        self._connection.execute(
            "INSERT INTO rows (seq, text, hash, signature) VALUES (?, ?, ?, ?)",
            (seq, row.text, row.hash, row.signature),
        )

    def patients(self) -> tuple[str, ...]:
        """Keyed hashes of the cohort's patients, if they were given."""
        with translated("be read"):
            found = self._connection.execute("SELECT hash FROM patients ORDER BY hash").fetchall()
        return tuple(_str(one) for (one,) in found)

    def add_patients(self, hashes: Iterable[str]) -> None:
        """Store the cohort's patient hashes. Inside `writing`."""
        self._connection.executemany("INSERT INTO patients VALUES (?)", [(one,) for one in hashes])


def _identity(path: Path) -> tuple[int, int]:
    with translated("be found"):
        found = path.stat()
    return found.st_dev, found.st_ino


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise LedgerError("the ledger's file is damaged")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise LedgerError("the ledger's file is damaged")
    return value
