"""The audit log: what is in it stays as it is, or it shows."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.agent.audit import AuditLog, Kind, read
from common.errors import LedgerError
from common.privacy.budget import Budget
from common.privacy.chain import GENESIS, make_row
from common.privacy.events import GaussianRelease
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger

KEY = SiteKey(bytes(range(32)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "audit.sqlite"
    log = AuditLog(path, key=KEY)
    for number in range(3):
        assert log.append(Kind.asked, {"what": "train", "round": number}) == number + 2
    log.close()
    return path


def problems(path: Path) -> tuple[str, ...]:
    return read(path, public_key=KEY.public_key).problems


def tamper(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        names = connection.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'")
        triggers = names.fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
    connection.close()


def test_rows_come_back_in_order_and_whole(path: Path) -> None:
    found = read(path, public_key=KEY.public_key)
    assert found.problems == ()
    assert [record.seq for record in found.records] == [1, 2, 3, 4]
    assert [record.kind for record in found.records] == [Kind.opened, *[Kind.asked] * 3]
    assert found.records[3].fields == {"what": "train", "round": 2}
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        (
            "UPDATE rows SET text = replace(text, '\"round\":1', '\"round\":9') WHERE seq = 3",
            "row 3",
        ),
        ("DELETE FROM rows WHERE seq = 3", "row 3"),
        ("DELETE FROM rows WHERE seq = 4", "rows are missing"),
        ("UPDATE rows SET seq = 9 WHERE seq = 2", "row 2"),
        ("DELETE FROM rows", "audit log is empty"),
    ],
)
def test_what_was_changed_by_hand_shows(path: Path, statement: str, complaint: str) -> None:
    tamper(path, statement)
    (problem,) = problems(path)
    assert complaint in problem
    with pytest.raises(LedgerError):
        AuditLog(path, key=KEY)


@pytest.mark.parametrize(
    ("key", "follows", "complaint"),
    [
        (SiteKey(bytes(32)), True, "not signed by this site's key"),
        (KEY, False, "does not follow the one before"),
    ],
)
def test_a_row_of_another_key_or_another_chain_shows(
    path: Path, key: SiteKey, follows: bool, complaint: str
) -> None:
    known = read(path, public_key=KEY.public_key)
    fields: dict[str, object] = {
        "seq": 5,
        "kind": "asked",
        "previous": known.head if follows else GENESIS,
        "time": "",
        "what": "x",
    }
    row = make_row(fields, key)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        values = (5, row.text, row.hash, row.signature)
        connection.execute(
            "INSERT INTO rows (seq, text, hash, signature) VALUES (?, ?, ?, ?)", values
        )
    assert complaint in problems(path)[0]


def test_a_log_without_its_head_or_a_head_without_its_log_shows(path: Path) -> None:
    head = path.with_suffix(".head")
    content = head.read_bytes()
    head.unlink()
    assert "head is missing" in problems(path)[0]
    head.write_bytes(content)
    path.unlink()
    with pytest.raises(LedgerError, match="gone or empty"):
        AuditLog(path, key=KEY)


def test_neither_a_ledger_nor_a_log_passes_for_the_other(path: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    with pytest.raises(LedgerError), Ledger.open(path, cohort="ab" * 32, key=KEY):
        pass
    with Ledger.open(ledger, cohort="ab" * 32, key=KEY):
        pass
    with pytest.raises(LedgerError, match="audit log"):
        AuditLog(ledger, key=KEY)


def test_two_that_write_at_once_make_one_chain(path: Path) -> None:
    logs = [AuditLog(path, key=KEY) for _ in range(2)]

    def write(number: int) -> None:
        logs[number % 2].append(Kind.asked, {"number": number})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(20)))
    for log in logs:
        log.close()
    found = read(path, public_key=KEY.public_key)
    assert found.problems == ()
    numbers = [r.fields["number"] for r in found.records if "number" in r.fields]
    assert sorted(numbers) == list(range(20))


def test_a_ledger_that_was_set_back_shows_in_the_log(tmp_path: Path) -> None:
    cohort = "ab" * 32
    file = tmp_path / "ledgers" / f"{cohort[:24]}.sqlite"
    budget = Budget(epsilon=50.0, delta=1e-5, accountant="rdp")
    log = AuditLog(tmp_path / "audit.sqlite", key=KEY)
    with Ledger.open(file, cohort=cohort, key=KEY) as ledger:
        before = {name: name.read_bytes() for name in file.parent.iterdir()}
        ledger.reserve(
            request_id="1",
            events=[GaussianRelease(noise_multiplier=9.0)],
            purpose="t",
            budget=budget,
        )
        said = ledger.statement(budget).to_dict()
    log.append(Kind.answered, {"ledger": {n: said[n] for n in ("cohort", "length", "head")}})
    log.close()

    def found() -> tuple[str, ...]:
        return read(
            tmp_path / "audit.sqlite", public_key=KEY.public_key, ledgers=file.parent
        ).problems

    assert found() == ()
    for name in list(file.parent.iterdir()):
        name.unlink()
    for name, content in before.items():
        name.write_bytes(content)
    assert found() == ("row 2: the ledger has no such state; it was set back",)


def test_a_row_is_json_for_others_to_read(path: Path) -> None:
    record = read(path, public_key=KEY.public_key).records[1]
    assert json.loads(json.dumps(record.to_dict()))["kind"] == "asked"
