from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.privacy import head
from common.privacy.budget import Budget
from common.privacy.chain import GENESIS, Kind, State, make_row
from common.privacy.events import GaussianRelease
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
from common.privacy.verification import verify

KEY, THIEF = SiteKey(bytes(range(32))), SiteKey(bytes(range(1, 33)))
BUDGET = Budget(epsilon=50.0, delta=1e-5)
NUM_REQUESTS = 12


def make(folder: Path) -> Path:
    path = folder / "site.sqlite"
    with Ledger.open(path, cohort="c", key=KEY) as ledger:
        for i in range(NUM_REQUESTS):
            event = GaussianRelease(noise_multiplier=5.0, count=1 + i)
            ledger.reserve(request_id=f"r{i}", events=[event], purpose="train", budget=BUDGET)
            if i % 3:
                ledger.commit(f"r{i}")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path)


def check(path: Path) -> str:
    return " ".join(verify(path, public_key=KEY.public_key).problems)


def tamper(path: Path, *statements: str) -> None:
    """Change rows behind the ledger's back and put its own triggers back afterwards."""
    connection = sqlite3.connect(path, isolation_level=None)
    triggers = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    ).fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.close()


def test_an_untouched_ledger_verifies(path: Path) -> None:
    found = verify(path, public_key=KEY.public_key)
    assert found.ok
    assert found.length == 1 + NUM_REQUESTS + 8
    assert len(found.entries) == NUM_REQUESTS
    assert sum(entry.state is State.reserved for entry in found.entries) == 4
    assert found.spent == (GaussianRelease(noise_multiplier=5.0, count=78),)
    assert found.cohort is not None
    assert found.cohort.fingerprint == "c"


def test_verifying_changes_nothing(path: Path) -> None:
    before = path.read_bytes(), head.path_of(path).read_bytes()
    assert verify(path, public_key=KEY.public_key).ok
    assert (path.read_bytes(), head.path_of(path).read_bytes()) == before


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["DELETE FROM rows WHERE seq = 5"], "row 5 .* missing"),
        (["DELETE FROM rows WHERE seq > 19"], "rows are missing"),
        (["DELETE FROM rows WHERE seq = 1"], "row 1 .* missing"),
        (["DELETE FROM rows"], "empty"),
        (["UPDATE rows SET text = replace(text, '5.0', '9.0') WHERE seq = 4"], "row 4 .* changed"),
        (["UPDATE rows SET hash = upper(hash) WHERE seq = 4"], "row 4 .* changed"),
        (["UPDATE rows SET signature = '' WHERE seq = 21"], "row 21 .* not signed"),
        (
            [
                "UPDATE rows SET seq = -1 WHERE seq = 3",
                "UPDATE rows SET seq = 3 WHERE seq = 4",
                "UPDATE rows SET seq = 4 WHERE seq = -1",
            ],
            "row 3 .* does not follow",
        ),
        (
            [
                "DELETE FROM rows WHERE seq = 20",
                "UPDATE rows SET seq = 20 WHERE seq = 21",
            ],
            "row 20 .* does not follow",
        ),
        (["DROP INDEX one_end"], "tables"),
        (["INSERT INTO patients VALUES ('x')"], "patient hashes"),
        (["PRAGMA user_version = 2"], "schema version 2"),
    ],
)
def test_tampering_is_found(path: Path, statements: list[str], found: str) -> None:
    tamper(path, *statements)
    assert re.search(found, check(path))
    with pytest.raises(LedgerError):
        Ledger.open(path, cohort="c", key=KEY)


def test_the_tables_themselves_refuse_changes(path: Path) -> None:
    connection = sqlite3.connect(path)
    for statement in ("DELETE FROM rows", "UPDATE rows SET hash = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_row_by_another_key_is_found(path: Path) -> None:
    connection = sqlite3.connect(path)
    (last,) = connection.execute("SELECT hash FROM rows ORDER BY seq DESC LIMIT 1").fetchone()
    fields: dict[str, object] = {
        "seq": 22,
        "kind": Kind.abandon.value,
        "previous": last,
        "time": "",
        "request_id": "r0",
        "reason": "forged",
    }
    row = make_row(fields, THIEF)
    connection.execute(
        "INSERT INTO rows (seq, text, hash, signature) VALUES (22, ?, ?, ?)",
        (row.text, row.hash, row.signature),
    )
    connection.commit()
    connection.close()
    assert "row 22 of the ledger is not signed by this site's key" in check(path)


def test_a_ledger_rewritten_with_another_key_is_found(path: Path, tmp_path: Path) -> None:
    (tmp_path / "forged").mkdir()
    forged = tmp_path / "forged" / "site.sqlite"
    Ledger.open(forged, cohort="c", key=THIEF).close()
    assert verify(forged, public_key=THIEF.public_key).ok
    shutil.copy(forged, path)
    shutil.copy(head.path_of(forged), head.path_of(path))
    assert "not signed by this site's key" in check(path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (Path.unlink, "head is missing"),
        (lambda one: one.write_bytes(b"{}"), "head is damaged"),
        (lambda one: one.write_bytes(one.read_bytes().replace(b"21", b"20")), "not signed"),
    ],
)
def test_a_changed_head_is_found(path: Path, change: Callable[[Path], object], found: str) -> None:
    change(head.path_of(path))
    assert found in check(path)
    with pytest.raises(LedgerError):
        Ledger.open(path, cohort="c", key=KEY)


def test_a_head_of_other_rows_is_found(path: Path) -> None:
    head_path = head.path_of(path)
    head_path.unlink()
    head.advance(path, length=7, row_hash=GENESIS, key=KEY)
    assert "does not belong" in check(path)


def test_a_head_left_behind_by_a_crash_is_mended(path: Path) -> None:
    old = head.path_of(path).read_bytes()
    with Ledger.open(path, cohort="c", key=KEY) as ledger:
        ledger.commit("r0")
    head.path_of(path).write_bytes(old)
    assert verify(path, public_key=KEY.public_key).ok
    Ledger.open(path, cohort="c", key=KEY).close()
    mended = head.read(path, KEY.public_key)
    assert mended is not None
    assert mended.length == 22


def test_set_back_together_is_not_found_here_but_by_the_servers_statements(path: Path) -> None:
    from common.privacy.statement import check_statement

    files = [path, head.path_of(path)]
    old = [one.read_bytes() for one in files]
    with Ledger.open(path, cohort="c", key=KEY) as ledger:
        ledger.commit("r0")
        known_to_server = ledger.statement(BUDGET)
    for one, content in zip(files, old, strict=True):
        one.write_bytes(content)
    assert verify(path, public_key=KEY.public_key).ok
    with Ledger.open(path, cohort="c", key=KEY) as ledger:
        problems = check_statement(ledger.statement(BUDGET), previous=known_to_server)
    assert any(one.startswith("length: went back") for one in problems)


def test_without_any_key_nothing_is_verified(path: Path) -> None:
    assert "site key cannot be read" in verify(path).problems[0]
    with pytest.raises(LedgerError):
        Ledger.open(path, cohort="c")


def test_a_missing_ledger_is_a_problem_not_a_new_one(tmp_path: Path) -> None:
    found = verify(tmp_path / "none.sqlite", public_key=KEY.public_key)
    assert not found.ok
    assert list(tmp_path.iterdir()) == []


def wal_left_by_a_crash(folder: Path) -> Path:
    """A ledger whose last rows lie in the write-ahead log only, as after a kill."""
    live = folder / "live"
    live.mkdir()
    path = make(live)
    with Ledger.open(path, cohort="c", key=KEY) as ledger:
        for i in range(3):
            event = GaussianRelease(noise_multiplier=5.0, count=1)
            ledger.reserve(request_id=f"s{i}", events=[event], purpose="train", budget=BUDGET)
        crashed = folder / "crashed"
        crashed.mkdir()
        for one in live.iterdir():
            if not one.name.endswith("-shm"):
                shutil.copy(one, crashed)
    assert (crashed / "site.sqlite-wal").stat().st_size > 0
    return crashed / "site.sqlite"


@pytest.mark.parametrize("crashed", [False, True])
def test_no_damage_verifies_with_less_spend(tmp_path: Path, crashed: bool) -> None:
    if crashed:
        source = wal_left_by_a_crash(tmp_path)
    else:
        (tmp_path / "whole").mkdir()
        source = make(tmp_path / "whole")
    truth = verify(source, public_key=KEY.public_key)
    assert truth.ok
    spent = BUDGET.spent(truth.spent)
    seed = int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)
    rejected = 0
    trials = int(os.environ.get("FEDWARD_FUZZ_TRIALS", "150"))
    for trial in range(trials):
        folder = tmp_path / f"trial{trial}"
        shutil.copytree(source.parent, folder)
        name = "site.sqlite-wal" if crashed and rng.random() < 0.7 else "site.sqlite"
        damage(folder / name, rng)
        found = verify(folder / "site.sqlite", public_key=KEY.public_key)
        if found.ok:
            assert BUDGET.spent(found.spent) >= spent, f"seed {seed}, trial {trial}"
            assert found.entries == truth.entries, f"seed {seed}, trial {trial}"
        else:
            rejected += 1
        reopened(folder / "site.sqlite", spent, f"seed {seed}, trial {trial}")
        shutil.rmtree(folder)
    assert trials // 5 < rejected, f"seed {seed}: the damage was hardly any"


def reopened(path: Path, spent: float, which: str) -> None:
    try:
        with Ledger.open(path, cohort="c", key=KEY) as ledger:
            assert ledger.epsilon(BUDGET.delta) >= spent, which
    except LedgerError:
        pass


def damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    match rng.randrange(4):
        case 0:
            del content[rng.randrange(len(content)) :]
        case 1:
            start = rng.randrange(len(content))
            content[start : start + rng.randrange(1, 5000)] = b""
        case 2:
            at = rng.randrange(len(content))
            content[at : at + 200] = rng.randbytes(len(content[at : at + 200]))
        case _:
            for _ in range(rng.randrange(1, 20)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
