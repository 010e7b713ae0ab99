from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.privacy import store
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
from common.privacy.verification import verify

KEY = SiteKey(bytes(range(32)))


def test_durability_is_what_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "site.sqlite"
    with Ledger.open(path, cohort="c", key=KEY) as ledger:
        connection = ledger._store._connection  # pyright: ignore[reportPrivateUsage]
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
import math, sys
from pathlib import Path
from common.privacy.budget import Budget
from common.privacy.events import GaussianRelease
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
folder, name, other = Path(sys.argv[1]), *sys.argv[2:]
key, budget = SiteKey(bytes(range(32))), Budget(epsilon=math.inf, delta=1e-5)
events = [GaussianRelease(noise_multiplier=9.0)]
for i in range(45):
    (folder / f"{name}.{i}").touch()
    while not (folder / f"{other}.{i}").exists():
        pass
    with Ledger.open(folder / f"{i}.sqlite", cohort="c", key=key) as ledger:
        for j in range(3):
            ledger.reserve(request_id=f"{name}{j}", events=events, purpose="x", budget=budget)
"""


def test_two_may_make_the_same_ledger_at_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_TOGETHER, str(tmp_path), *names],
            cwd=root,
            stderr=subprocess.PIPE,
        )
        for names in (("left", "right"), ("right", "left"))
    ]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    ledgers = list(tmp_path.glob("*.sqlite"))
    assert len(ledgers) == 45
    for path in ledgers:
        found = verify(path, public_key=KEY.public_key)
        assert found.ok
        assert len(found.entries) == 6
