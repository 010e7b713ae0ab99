from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.privacy import store
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger

KEY = SiteKey(bytes(range(32)))


def test_durability_is_what_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "site.sqlite"
    with Ledger.open(path, cohort="c", key=KEY) as ledger:
        connection = ledger._store._connection  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        full = 2
        assert connection.execute("PRAGMA synchronous").fetchone() == (full,)


def test_an_older_schema_is_migrated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "site.sqlite"
    Ledger.open(path, cohort="c", key=KEY).close()
    calls: list[int] = []

    def migrate(connection: sqlite3.Connection) -> None:
        assert connection.in_transaction
        calls.append(1)

    monkeypatch.setattr(store, "SCHEMA_VERSION", 2)
    with pytest.raises(LedgerError, match="schema version 1"):
        Ledger.open(path, cohort="c", key=KEY)
    monkeypatch.setattr(store, "_MIGRATIONS", {1: migrate})
    for _ in range(2):
        Ledger.open(path, cohort="c", key=KEY).close()
    assert calls == [1]


def test_a_failing_migration_leaves_the_old_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.sqlite"
    Ledger.open(path, cohort="c", key=KEY).close()

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TRIGGER rows_stay")
        connection.execute("SELECT * FROM no_such_table")

    with monkeypatch.context() as patched:
        patched.setattr(store, "SCHEMA_VERSION", 2)
        patched.setattr(store, "_MIGRATIONS", {1: fail})
        with pytest.raises(LedgerError, match="no_such_table"):
            Ledger.open(path, cohort="c", key=KEY)
    Ledger.open(path, cohort="c", key=KEY).close()


def test_messages_name_no_path(tmp_path: Path) -> None:
    hidden = tmp_path / "phantom-1" / "site.sqlite"
    with pytest.raises(LedgerError) as error:
        store.Store(hidden, timeout_seconds=1)
    assert "phantom-1" not in str(error.value)
    (tmp_path / "phantom-1").write_text("a file where a folder should be")
    with pytest.raises(LedgerError) as error:
        Ledger.open(hidden, cohort="c", key=KEY)
    assert "phantom-1" not in str(error.value)


OPEN_TOGETHER = """
import sys, time
from pathlib import Path
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
start, folder = float(sys.argv[1]), Path(sys.argv[2])
for i in range(60):
    time.sleep(max(0.0, start + i * 0.02 - time.time()))
    Ledger.open(folder / f"{i}.sqlite", cohort="c", key=SiteKey(bytes(range(32)))).close()
"""


def test_two_may_make_the_same_ledger_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN_TOGETHER, str(time.time() + 6), str(tmp_path)]
    root = Path(__file__).parents[3]
    both = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
