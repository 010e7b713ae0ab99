from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Unit
from common.errors import BudgetExceeded, LedgerError
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.cohort import fingerprint, patient_hashes
from common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
)
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
from common.privacy.statement import SpendStatement, check_statement

KEY = SiteKey(bytes(range(32)))
ROUND = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.3, steps=5)
RELEASE = GaussianRelease(noise_multiplier=4.0)
BUDGET = Budget(epsilon=8.0, delta=1e-5)


def opened(path: Path, **options: object) -> Ledger:
    return Ledger.open(path, cohort="c", key=KEY, **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with opened(path) as one:
        yield one


def reserve(ledger: Ledger, name: str, *events: object, budget: Budget = BUDGET) -> bool:
    done = ledger.reserve(
        request_id=name,
        events=events or [ROUND],  # pyright: ignore[reportArgumentType]
        purpose="train",
        budget=budget,
    )
    return done.fresh


def test_spend_is_counted_from_the_reservation_on(ledger: Ledger) -> None:
    assert ledger.epsilon(1e-5) == 0.0
    reserve(ledger, "r1")
    one = BUDGET.spent([ROUND])
    assert ledger.epsilon(1e-5) == one
    ledger.commit("r1")
    assert ledger.epsilon(1e-5) == one
    reserve(ledger, "r2")
    assert ledger.epsilon(1e-5) == BUDGET.spent([ROUND, ROUND]) > one
    assert ledger.epsilon(1e-5, "rdp") > ledger.epsilon(1e-5)
    ledger.abandon("r2", "the site was switched off before reading")
    assert ledger.epsilon(1e-5) == one
    assert ledger.events() == (ROUND,)


def test_it_is_all_there_after_reopening(path: Path) -> None:
    with opened(path) as ledger:
        reserve(ledger, "r1")
        ledger.commit("r1")
        reserve(ledger, "r2", RELEASE)
    with opened(path) as ledger:
        assert ledger.events() == (ROUND, RELEASE)
        states = [(entry.request_id, entry.state) for entry in ledger.entries()]
        assert states == [("r1", State.committed), ("r2", State.reserved)]
        reserve(ledger, "r3")
        assert ledger.epsilon(1e-5) == BUDGET.spent([ROUND, ROUND, RELEASE])


def test_a_repeated_request_is_the_first_one(ledger: Ledger) -> None:
    assert reserve(ledger, "r1")
    assert not reserve(ledger, "r1")
    ledger.commit("r1")
    again = ledger.reserve(request_id="r1", events=[ROUND], purpose="train", budget=BUDGET)
    assert (again.state, again.fresh, again.events) == (State.committed, False, (ROUND,))
    assert ledger.commit("r1").fresh is False
    assert ledger.events() == (ROUND,)
    with pytest.raises(LedgerError, match="other events"):
        reserve(ledger, "r1", RELEASE)
    with pytest.raises(LedgerError, match="committed"):
        ledger.abandon("r1", "too late")


def test_a_repeated_request_is_answered_even_when_nothing_is_left(ledger: Ledger) -> None:
    small = Budget(epsilon=BUDGET.spent([ROUND]), delta=1e-5)
    assert reserve(ledger, "r1", budget=small)
    assert not reserve(ledger, "r1", budget=small)


def test_past_the_cap_is_refused_and_not_recorded(ledger: Ledger) -> None:
    for i in range(9):
        reserve(ledger, f"r{i}")
    before = ledger.statement(BUDGET)
    with pytest.raises(BudgetExceeded) as refusal:
        reserve(ledger, "r9")
    message = str(refusal.value)
    assert "from 7.837 to 8.275" in message
    assert "cap of 8 " in message
    assert "0.1634 is left" in message
    assert "5 steps at rate 0.25, noise multiplier 1.3" in message
    assert "and 1 single steps" in message
    assert refusal.value.code == "budget_exceeded"
    assert ledger.statement(BUDGET) == before
    last_step = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.3, steps=1)
    assert reserve(ledger, "r9 shorter", last_step)
    assert ledger.epsilon(1e-5) <= 8.0
    with pytest.raises(BudgetExceeded):
        reserve(ledger, "r10", last_step)
    assert ledger.remaining_rounds(BUDGET, [last_step]) == 0


def test_the_cap_itself_may_be_reached(ledger: Ledger) -> None:
    exactly = Budget(epsilon=BUDGET.spent([ROUND, ROUND]), delta=1e-5)
    assert reserve(ledger, "r1", budget=exactly)
    assert reserve(ledger, "r2", budget=exactly)


def test_without_noise_only_without_a_cap(ledger: Ledger) -> None:
    raw = NonPrivateRelease(reason="public study")
    with pytest.raises(BudgetExceeded):
        reserve(ledger, "r1", raw)
    assert reserve(ledger, "r1", raw, budget=Budget(epsilon=math.inf, delta=1e-5))
    assert ledger.epsilon(1e-5) == math.inf
    assert ledger.statement(BUDGET).private is False


def test_less_may_be_committed_never_more(ledger: Ledger) -> None:
    reserve(ledger, "r1")
    longer = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.3, steps=6)
    shorter = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.3, steps=3)
    with pytest.raises(LedgerError, match="more was done"):
        ledger.commit("r1", [longer])
    with pytest.raises(LedgerError, match="more was done"):
        ledger.commit("r1", [RELEASE])
    assert ledger.events() == (ROUND,)
    ledger.commit("r1", [shorter])
    assert ledger.events() == (shorter,)
    with pytest.raises(LedgerError, match="other events"):
        ledger.commit("r1", [ROUND])


def test_what_was_not_reserved_cannot_be_closed(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="never reserved"):
        ledger.commit("r1")
    with pytest.raises(LedgerError, match="never reserved"):
        ledger.abandon("r1", "no data was read")
    reserve(ledger, "r1")
    with pytest.raises(ValueError, match="reason"):
        ledger.abandon("r1", " ")
    ledger.abandon("r1", "no data was read")
    assert ledger.abandon("r1", "no data was read").fresh is False
    with pytest.raises(LedgerError, match="abandoned"):
        ledger.commit("r1")


def test_two_that_have_it_open_see_each_other(path: Path) -> None:
    both = Budget(epsilon=BUDGET.spent([ROUND, ROUND]), delta=1e-5)
    with opened(path) as one, opened(path) as two:
        assert reserve(one, "a", budget=both)
        assert reserve(two, "b", budget=both)
        for ledger in (one, two):
            with pytest.raises(BudgetExceeded):
                reserve(ledger, "c", budget=both)
        two.commit("a")
        assert one.entries() == two.entries()
        assert one.statement(both) == two.statement(both)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 6), st.sampled_from(["ask", "do", "drop"])),
        max_size=25,
    )
)
def test_no_interleaving_passes_the_cap(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int, str]]
) -> None:
    budget = Budget(epsilon=2.0, delta=1e-5)
    path = tmp_path_factory.mktemp("ledger") / "site.sqlite"
    with opened(path) as one, opened(path) as two:
        done: set[str] = set()
        for who, number, move in moves:
            ledger, name = (one, two)[who], f"r{number}"
            try:
                if move == "ask":
                    reserve(ledger, name, RELEASE, budget=budget)
                elif move == "do":
                    ledger.commit(name)
                    done.add(name)
                else:
                    ledger.abandon(name, "no data was read")
            except (BudgetExceeded, LedgerError):
                pass
            assert ledger.epsilon(1e-5) <= 2.0
            assert ledger.epsilon(1e-5) >= budget.spent([RELEASE] * len(done))


def test_statements_hold_and_follow_each_other(ledger: Ledger) -> None:
    previous: SpendStatement | None = None
    for i in range(4):
        reserve(ledger, f"r{i}")
        if i == 2:
            ledger.abandon("r2", "no data was read")
        else:
            ledger.commit(f"r{i}", [ROUND] if i else None)
        statement = ledger.statement(BUDGET)
        assert check_statement(statement, public_key=KEY.public_key, previous=previous) == ()
        previous = statement
    assert previous is not None
    assert previous.epsilon == previous.epsilon_committed == BUDGET.spent([ROUND] * 3)
    assert (previous.num_events, previous.num_open, previous.length) == (3, 0, 9)
    reserve(ledger, "r9")
    later = ledger.statement(BUDGET)
    assert later.epsilon > later.epsilon_committed == previous.epsilon
    assert later.num_open == 1


def test_a_statement_does_not_tell_how_many_images_a_patient_has(tmp_path: Path) -> None:
    budget = Budget(epsilon=8.0, delta=1e-5, unit=Unit.image)
    said: list[dict[str, object]] = []
    for most in (3, 4):
        path = tmp_path / f"{most}.sqlite"
        with opened(path, unit=Unit.image, images_per_patient=most) as ledger:
            reserve(ledger, "r1", budget=budget)
            said.append(ledger.statement(budget).to_dict())
            with pytest.raises(ValueError, match=r"budget\.unit"):
                reserve(ledger, "r2")
    for statement in said:
        for name in ("head", "public_key", "signature"):
            del statement[name]
    assert said[0] == said[1]


def test_a_round_of_the_clock_is_written(path: Path) -> None:
    noon = datetime(2030, 1, 2, 12, tzinfo=UTC)
    with opened(path, clock=lambda: noon) as ledger:
        reserve(ledger, "r1")
    connection = sqlite3.connect(path)
    (text,) = connection.execute("SELECT text FROM rows WHERE seq = 2").fetchone()
    connection.close()
    assert '"time":"2030-01-02T12:00:00+00:00"' in text


def test_no_identifier_reaches_the_disk(tmp_path: Path) -> None:
    patients = ["phantom-nightingale", "phantom-curie"]
    with Ledger.open(
        tmp_path / "a.sqlite",
        cohort=fingerprint(patients, KEY.cohort_key),
        patient_hashes=patient_hashes(patients, KEY.cohort_key),
        key=KEY,
    ) as ledger:
        reserve(ledger, "r1")
        everything = b"".join(one.read_bytes() for one in tmp_path.iterdir())
    assert len(everything) > 1000
    assert b"nightingale" not in everything
    assert b"curie" not in everything


def test_another_cohort_unit_or_key_is_refused(path: Path) -> None:
    opened(path).close()
    with pytest.raises(LedgerError, match="another cohort"):
        Ledger.open(path, cohort="d", key=KEY)
    with pytest.raises(LedgerError, match="counts by patient"):
        opened(path, unit=Unit.image)
    with pytest.raises(LedgerError, match="images_per_patient"):
        opened(path, images_per_patient=2)
    with pytest.raises(LedgerError, match="key"):
        Ledger.open(path, cohort="c", key=SiteKey.generate())


def test_the_key_is_made_once_and_then_needed(path: Path) -> None:
    Ledger.open(path, cohort="c").close()
    assert path.with_suffix(".key").exists()
    Ledger.open(path, cohort="c").close()
    path.with_suffix(".key").unlink()
    with pytest.raises(LedgerError, match="key cannot be read"):
        Ledger.open(path, cohort="c")


def test_locked_by_another_is_refused_and_not_recorded(path: Path) -> None:
    with opened(path, timeout_seconds=0.05) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            reserve(ledger, "r1")
        other.execute("ROLLBACK")
        other.close()
        assert ledger.events() == ()
        assert reserve(ledger, "r1")


def test_a_full_disk_is_refused_and_not_recorded(path: Path) -> None:
    with opened(path) as ledger:
        reserve(ledger, "r1")
        # SQLite's own limit answers "database or disk is full", as a full disk does.
        connection = ledger._store._connection  # pyright: ignore[reportPrivateUsage]
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        fill = GaussianRelease(noise_multiplier=1000.0)
        with pytest.raises(LedgerError, match="full"):
            any(not reserve(ledger, f"s{i}", fill) for i in range(200))
        known = ledger.entries()
        assert 1 <= len(known) < 200
    with opened(path) as ledger:
        assert ledger.entries() == known


WRITE_ONLY_AS_NOBODY = """
import os, sys
from pathlib import Path
from common.errors import LedgerError
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    Ledger.open(Path(sys.argv[1]), cohort="c", key=SiteKey(bytes(range(32))))
except LedgerError as error:
    print(type(error).__name__)
"""


def test_a_read_only_ledger_is_refused(path: Path, tmp_path: Path) -> None:
    opened(path).close()
    for one in [*tmp_path.iterdir(), tmp_path]:
        one.chmod(0o555 if one.is_dir() else 0o444)
    for parent in tmp_path.parents:
        # Another user must be able to get here, so that only writing is what fails.
        if parent.stat().st_uid == os.getuid() and "pytest" in parent.name:
            parent.chmod(0o755)
    try:
        found = subprocess.run(
            [sys.executable, "-c", WRITE_ONLY_AS_NOBODY, str(path)],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[3],
        )
    finally:
        tmp_path.chmod(0o755)
    assert found.stdout == "LedgerError\n"


def test_a_ledger_that_vanished_while_open_is_refused(path: Path) -> None:
    with opened(path) as ledger:
        reserve(ledger, "r1")
        path.unlink()
        with pytest.raises(LedgerError):
            reserve(ledger, "r2")


@pytest.mark.parametrize("left", ["nothing", "empty file"])
def test_a_ledger_whose_rows_are_gone_is_not_started_anew(path: Path, left: str) -> None:
    with opened(path) as ledger:
        reserve(ledger, "r1")
    path.unlink()
    if left == "empty file":
        path.touch()
    with pytest.raises(LedgerError, match="gone or empty"):
        opened(path)


def test_newer_schemas_are_refused(path: Path) -> None:
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LedgerError, match="schema version 99"):
        opened(path)


def test_no_file_of_ours_is_no_ledger(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        opened(path)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY)")
    connection.close()
    with pytest.raises(LedgerError, match="schema"):
        opened(path)


def test_a_child_process_must_open_it_itself(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(LedgerError, match="another process"):
        ledger.events()


def test_a_refusal_by_renyi_says_so(tmp_path: Path) -> None:
    budget = Budget(epsilon=4.0, delta=1e-5, adaptive=True)
    other = PoissonGaussianSteps(sampling_rate=0.5, noise_multiplier=10.0, steps=87)
    first = PoissonGaussianSteps(sampling_rate=0.5, noise_multiplier=3.0, steps=20)
    with opened(tmp_path / "a.sqlite") as ledger:
        ledger.reserve(request_id="r1", events=[first], purpose="train", budget=budget)
        with pytest.raises(BudgetExceeded, match=r"past the cap of 4 .*accountant rdp"):
            ledger.reserve(request_id="r2", events=[other], purpose="train", budget=budget)
