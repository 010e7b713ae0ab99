from __future__ import annotations

import itertools
import math
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.config import Unit
from common.errors import BudgetExceeded, LedgerError
from common.privacy import head
from common.privacy.book import BookedLedger, LedgerBook
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.cohort import fingerprint
from common.privacy.events import GaussianRelease, split
from common.privacy.keys import SiteKey
from common.privacy.ledger import Reservation
from common.privacy.store import Store
from common.privacy.verification import verify

KEY = SiteKey(bytes(range(32)))
BUDGET = Budget(epsilon=2.0, delta=1e-5)
RELEASE = GaussianRelease(noise_multiplier=4.0)
ONE, TWO = BUDGET.spent([RELEASE]), BUDGET.spent([RELEASE] * 2)


@pytest.fixture
def book(tmp_path: Path) -> LedgerBook:
    return LedgerBook(folder=tmp_path / "ledgers", key=KEY)


def test_the_same_patients_meet_the_same_budget(book: LedgerBook) -> None:
    with book.open(["a", "b"]) as ledger:
        ledger.reserve(request_id="study 1", events=[RELEASE], purpose="train", budget=BUDGET)
        ledger.commit("study 1")
    with book.open(["b", "a", "b"]) as ledger:
        assert ledger.epsilon(1e-5) == ONE
    assert len(list(book.folder.glob("*.sqlite"))) == 1


def test_strangers_are_not_charged(book: LedgerBook) -> None:
    with book.open(["a", "b"]) as one, book.open(["c"]) as two:
        one.reserve(request_id="r", events=[RELEASE], purpose="train", budget=BUDGET)
        one.commit("r")
        assert two.epsilon(1e-5) == 0.0


def test_overlapping_cohorts_are_both_charged(book: LedgerBook) -> None:
    with book.open(["a", "b"]) as one, book.open(["b", "c"]) as two:
        one.reserve(request_id="r", events=[RELEASE], purpose="train", budget=BUDGET)
        assert one.epsilon(1e-5) == two.epsilon(1e-5) == ONE
        one.commit("r")
        two.reserve(request_id="r", events=[RELEASE], purpose="train", budget=BUDGET)
        two.abandon("r", "no data was read")
        assert one.epsilon(1e-5) == two.epsilon(1e-5) == ONE
        two.reserve(request_id="s", events=[RELEASE, RELEASE], purpose="train", budget=BUDGET)
        two.commit("s", [RELEASE])
        assert one.epsilon(1e-5) == two.epsilon(1e-5) == TWO
        for ledger in (one, two):
            assert all(entry.state is not State.reserved for entry in ledger.own.entries())


def test_a_later_cohort_starts_with_what_its_patients_spent(book: LedgerBook) -> None:
    with book.open(["a", "b"]) as one:
        one.reserve(request_id="r", events=[RELEASE], purpose="train", budget=BUDGET)
        one.commit("r")
        one.reserve(request_id="open", events=[RELEASE], purpose="train", budget=BUDGET)
        with book.open(["b", "c"]) as two:
            assert two.epsilon(1e-5) == TWO
        one.abandon("open", "no data was read")
    with book.open(["b", "c"]) as two:
        assert two.epsilon(1e-5) == ONE
        # Work on "a" and "b" touches nobody in a cohort that shares only "c" with the second.
        with book.open(["c", "d"]) as three:
            assert three.epsilon(1e-5) == 0.0


def test_a_spent_overlapping_cohort_refuses_for_all(book: LedgerBook) -> None:
    with book.open(["a"]) as small, book.open(["a", "b"]) as large:
        for i in range(3):
            small.reserve(request_id=f"r{i}", events=[RELEASE], purpose="x", budget=BUDGET)
        apart = book.open(["b"])
        before = apart.epsilon(1e-5)
        with pytest.raises(BudgetExceeded):
            large.reserve(request_id="r", events=[RELEASE] * 2, purpose="x", budget=BUDGET)
        assert apart.epsilon(1e-5) == before
        apart.close()
    for path in book.folder.glob("*.sqlite"):
        assert verify(path, public_key=KEY.public_key).ok


def test_charges_are_given_back_when_the_cohort_itself_refuses(book: LedgerBook) -> None:
    three = Budget(epsilon=BUDGET.spent([RELEASE] * 3), delta=1e-5)
    with book.open(["a", "b"]) as both, book.open(["a"]) as first, book.open(["b"]) as second:
        for ledger in (first, second):
            ledger.reserve(request_id="r", events=[RELEASE], purpose="x", budget=three)
        assert both.epsilon(1e-5) == TWO
        with pytest.raises(BudgetExceeded):
            both.reserve(request_id="r", events=[RELEASE] * 2, purpose="x", budget=three)
        assert first.epsilon(1e-5) == second.epsilon(1e-5) == ONE
        assert both.epsilon(1e-5) == TWO


def test_images_count_as_patients_where_patients_are_counted(book: LedgerBook) -> None:
    by_image = Budget(epsilon=8.0, delta=1e-5, unit=Unit.image)
    by_patient = Budget(epsilon=8.0, delta=1e-5)
    with (
        book.open(["a"], unit=Unit.image, images_per_patient=2) as images,
        book.open(["a", "b"]) as patients,
    ):
        images.reserve(request_id="r", events=[RELEASE], purpose="x", budget=by_image)
        images.commit("r")
        assert images.epsilon(1e-5) == by_image.spent([RELEASE])
        halved = GaussianRelease(noise_multiplier=2.0)
        assert patients.epsilon(1e-5) == by_patient.spent([halved])


def test_a_books_key_is_made_once_and_missed_when_lost(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    with LedgerBook.at(folder).open(["a", "b"]) as ledger:
        ledger.reserve(request_id="r", events=[RELEASE], purpose="train", budget=BUDGET)
    with LedgerBook.at(folder).open(["a", "b"]) as ledger:
        assert ledger.epsilon(1e-5) == ONE
    (folder / "site.key").unlink()
    with pytest.raises(LedgerError, match="site key cannot be read"):
        LedgerBook.at(folder)
    for path in folder.glob("*.sqlite"):
        path.unlink()
    # The head alone tells that there was a ledger.
    with pytest.raises(LedgerError, match="site key cannot be read"):
        LedgerBook.at(folder)


def test_a_book_knows_its_patients(book: LedgerBook) -> None:
    assert book.num_known(["a", "b"]) == 0
    book.open(["a", "b"]).close()
    book.open(["c"]).close()
    assert book.num_known(["c", "a", "x", "a"]) == 2


def keys_in_order(*cohorts: list[str]) -> SiteKey:
    """A key under which the files of these cohorts sort in this order."""
    for number in range(1000):
        key = SiteKey(number.to_bytes(32))
        names = [fingerprint(cohort, key.cohort_key) for cohort in cohorts]
        if names == sorted(names):
            return key
    raise AssertionError("no key was found")


# The first shares a patient with each of the others, which share none.
COHORTS = {"A": ["x", "y"], "B": ["x"], "C": ["y"]}
ORDERS = list(itertools.permutations(COHORTS))
TIGHT = Budget(epsilon=TWO, delta=1e-5)
LOOSE = Budget(epsilon=math.inf, delta=1e-5)
# Earlier work on B and on C, after which one more passes the cap of these.
PRIORS = {"C refuses": {"B": 0, "C": 2}, "A refuses": {"B": 1, "C": 1}}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Three cohorts of one book, with what was done on B and C before."""

    book: LedgerBook
    prior: dict[str, int]

    @classmethod
    def begun(cls, folder: Path, order: tuple[str, ...], prior: dict[str, int]) -> Overlap:
        key = keys_in_order(*(COHORTS[name] for name in order))
        overlap = cls(book=LedgerBook(folder=folder, key=key), prior=prior)
        for name, times in prior.items():
            with overlap.open(name) as ledger:
                for i in range(times):
                    request_id = f"old {i}"
                    ledger.reserve(
                        request_id=request_id, events=[RELEASE], purpose="x", budget=LOOSE
                    )
                    ledger.commit(request_id)
        return overlap

    def open(self, name: str) -> BookedLedger:
        return self.book.open(COHORTS[name])

    def ask(self, ledger: BookedLedger, budget: Budget) -> Reservation:
        return ledger.reserve(
            request_id="run/1/train", events=[RELEASE], purpose="train", budget=budget
        )

    def on_disk(self) -> dict[str, float]:
        """Releases counted in each file, read without opening the book."""
        found: dict[str, float] = {}
        for name, cohort in COHORTS.items():
            stem = fingerprint(cohort, self.book.key.cohort_key)[:24]
            verification = verify(
                self.book.folder / f"{stem}.sqlite", public_key=self.book.key.public_key
            )
            assert verification.ok, verification.problems
            found[name] = sum(split(event)[1] for event in verification.spent)
        return found

    def expected(self, *, trained: int = 1) -> dict[str, int]:
        prior = {**self.prior, "A": sum(self.prior.values())}
        return {name: times + trained for name, times in prior.items()}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_a_refused_attempt_is_charged_when_it_is_granted_later(
    tmp_path: Path, order: tuple[str, ...], prior: dict[str, int]
) -> None:
    overlap = Overlap.begun(tmp_path, order, prior)
    with overlap.open("A") as ledger:
        for _ in range(2):
            with pytest.raises(BudgetExceeded):
                overlap.ask(ledger, TIGHT)
            assert overlap.on_disk() == overlap.expected(trained=0)
        assert overlap.ask(ledger, LOOSE).fresh
        assert overlap.on_disk() == overlap.expected()
        assert not overlap.ask(ledger, LOOSE).fresh
        ledger.commit("run/1/train")
        length = ledger.statement(LOOSE).length
        # What is there already is given again, whatever is left.
        assert overlap.ask(ledger, TIGHT).state is State.committed
        assert ledger.statement(LOOSE).length == length
    for name in COHORTS:
        with overlap.open(name) as ledger:
            assert ledger.epsilon(1e-5) == LOOSE.spent([RELEASE] * overlap.expected()[name])
            assert all(entry.state is not State.reserved for entry in ledger.entries())


def test_a_refused_attempt_may_ask_for_less(tmp_path: Path) -> None:
    overlap = Overlap.begun(tmp_path, ("A", "B", "C"), {"B": 0, "C": 1})
    with overlap.open("A") as ledger:
        with pytest.raises(BudgetExceeded):
            ledger.reserve(request_id="r", events=[RELEASE] * 9, purpose="x", budget=TIGHT)
        ledger.reserve(request_id="r", events=[RELEASE], purpose="x", budget=TIGHT)
        assert overlap.on_disk() == overlap.expected()


def test_what_was_given_up_stays_so_in_every_ledger(tmp_path: Path) -> None:
    overlap = Overlap.begun(tmp_path, ("A", "B", "C"), PRIORS["A refuses"])
    with overlap.open("A") as ledger:
        overlap.ask(ledger, LOOSE)
        ledger.abandon("run/1/train", "no data was read")
        assert overlap.ask(ledger, LOOSE).state is State.abandoned
    assert overlap.on_disk() == overlap.expected(trained=0)


@pytest.mark.parametrize("opened", ["A", "B"])
@pytest.mark.parametrize("committed", [False, True])
def test_opening_charges_what_an_abandoned_attempt_hid(
    tmp_path: Path, opened: str, committed: bool
) -> None:
    """As an earlier version of this program left it."""
    overlap = Overlap.begun(tmp_path, ("A", "B", "C"), {"B": 0, "C": 0})
    with overlap.open("A") as source, overlap.open("B") as target:
        foreign = f"{source.own.cohort.fingerprint}:run/1/train"
        target.own.reserve(
            request_id=foreign,
            events=[RELEASE],
            purpose="train",
            budget=LOOSE,
            origin=source.own.cohort.fingerprint,
        )
        target.own.abandon(foreign, "an overlapping cohort refused; no data read")
        source.own.reserve(
            request_id="run/1/train", events=[RELEASE], purpose="train", budget=LOOSE
        )
        if committed:
            source.own.commit("run/1/train")
    for _ in range(2):
        overlap.open(opened).close()
        assert overlap.on_disk()["B"] == 1
    with overlap.open("B") as target:
        last = target.entries()[-1]
    assert last.state is (State.committed if committed else State.reserved)
    assert last.origin == fingerprint(COHORTS["A"], overlap.book.key.cohort_key)


class Killed(BaseException):
    """Stands for the end of the process: nothing of the product catches it."""


@dataclass(kw_only=True)
class Clockwork:
    """Ends the process at the write number ``last``: of a row (undone) or of a head (left out)."""

    last: float = math.inf
    done: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Store, "append", self._counted(Store.append))
        patch.setattr(head, "advance", self._counted(head.advance))

    def _counted(self, write: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: object, **named: object) -> None:
            if self.done >= self.last:
                raise Killed
            self.done += 1
            write(*args, **named)

        return counted


def refused_then_granted(overlap: Overlap, trained: list[str]) -> None:
    with overlap.open("A") as ledger:
        with pytest.raises(BudgetExceeded):
            overlap.ask(ledger, TIGHT)
        overlap.ask(ledger, LOOSE)
        trained.append("run/1/train")
        ledger.commit("run/1/train")


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("order", [("A", "B", "C"), ("C", "B", "A")], ids="".join)
def test_no_crash_leaves_an_overlapping_cohort_uncharged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: tuple[str, ...],
    prior: dict[str, int],
) -> None:
    for last in itertools.count():
        overlap = Overlap.begun(tmp_path / str(last), order, prior)
        overlap.open("A").close()
        trained: list[str] = []
        with monkeypatch.context() as patch:
            Clockwork(last=last).install(patch)
            try:
                refused_then_granted(overlap, trained)
            except Killed:
                ended = True
            else:
                ended = False
        least = overlap.expected(trained=len(trained))
        assert all(overlap.on_disk()[name] >= times for name, times in least.items())
        if not ended:
            assert last > 10
            break
        # Whichever cohort is opened next, asking again is charged once everywhere.
        for name in ("B", "C") if last % 2 else ("C", "A"):
            overlap.open(name).close()
        for _ in range(2):
            with overlap.open("A") as ledger:
                with suppress(BudgetExceeded):
                    overlap.ask(ledger, TIGHT)
                overlap.ask(ledger, LOOSE)
                ledger.commit("run/1/train")
            assert overlap.on_disk() == overlap.expected()


def test_a_crash_while_giving_back_is_finished_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for last in itertools.count():
        overlap = Overlap.begun(tmp_path / str(last), ("A", "B", "C"), PRIORS["A refuses"])
        with overlap.open("A") as ledger:
            overlap.ask(ledger, LOOSE)
            with monkeypatch.context() as patch:
                Clockwork(last=last).install(patch)
                try:
                    ledger.abandon("run/1/train", "no data was read")
                except Killed:
                    ended = True
                else:
                    ended = False
        given_back = ledger_state(overlap) is State.abandoned
        overlap.open("A").close()
        assert overlap.on_disk() == overlap.expected(trained=0 if given_back else 1)
        if not ended:
            assert given_back
            break


def ledger_state(overlap: Overlap) -> State:
    """What A's own ledger says of the request, without opening the book."""
    stem = fingerprint(COHORTS["A"], overlap.book.key.cohort_key)[:24]
    path = overlap.book.folder / f"{stem}.sqlite"
    entries = verify(path, public_key=overlap.book.key.public_key).entries
    return {entry.request_id: entry.state for entry in entries}["run/1/train"]


@pytest.fixture
def spent(book: LedgerBook) -> Path:
    """The file of a cohort with ``x`` and ``y`` on which work was done."""
    with book.open(["x", "y"]) as ledger:
        ledger.reserve(request_id="r", events=[RELEASE], purpose="train", budget=BUDGET)
        ledger.commit("r")
    (path,) = book.folder.glob("*.sqlite")
    return path


def damaged(path: Path, *statements: str) -> None:
    """Change the file as somebody would who knows its tables."""
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    again = [sql for name, sql in triggers.fetchall() if connection.execute(f"DROP TRIGGER {name}")]
    for statement in (*statements, *again):
        connection.execute(statement)
    connection.commit()
    connection.close()


DAMAGE = {
    "signature": "UPDATE rows SET signature = '00' || substr(signature, 3) WHERE seq = 1",
    "hash": "UPDATE rows SET hash = '00' || substr(hash, 3) WHERE seq = 1",
    "text": "UPDATE rows SET text = replace(text, 'patient', 'image') WHERE seq = 1",
    "first row": "DELETE FROM rows WHERE seq = 1",
    "rows": "DELETE FROM rows",
    "later row": "UPDATE rows SET signature = '00' || substr(signature, 3) WHERE seq = 2",
    "patients": "DELETE FROM patients",
    "a patient": "DELETE FROM patients WHERE hash = (SELECT min(hash) FROM patients)",
    "another patient": "UPDATE patients SET hash = '00' || substr(hash, 3)",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_overlapping_ledger_is_refused_by_name(
    book: LedgerBook, spent: Path, statement: str
) -> None:
    damaged(spent, statement)
    for patients in (["x", "a"], ["y", "a"]):
        with pytest.raises(LedgerError, match=rf"^{spent.name}: ") as caught:
            book.open(patients)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a ledger"])
def test_an_overlapping_ledger_whose_file_is_gone_is_refused_by_name(
    book: LedgerBook, spent: Path, content: bytes | None
) -> None:
    spent.unlink()
    if content is not None:
        spent.write_bytes(content)
    with pytest.raises(LedgerError, match=rf"^{spent.name}: "):
        book.open(["x", "a"])
    with pytest.raises(LedgerError, match=rf"^{spent.name}: "):
        book.num_known(["x"])


def test_a_ledger_in_the_place_of_another_is_refused_by_name(book: LedgerBook, spent: Path) -> None:
    with book.open(["z"]):
        pass
    (other,) = set(book.folder.glob("*.sqlite")) - {spent}
    for end in (".sqlite", ".head"):
        shutil.copy(other.with_suffix(end), spent.with_suffix(end))
    with pytest.raises(LedgerError, match=rf"^{spent.name}: the ledger is about another cohort"):
        book.open(["x", "a"])


def test_another_sites_ledger_in_the_folder_is_refused_by_name(
    book: LedgerBook, spent: Path
) -> None:
    other = LedgerBook(folder=book.folder, key=SiteKey(bytes(32)))
    with pytest.raises(LedgerError, match=rf"^{spent.name}: .* not signed by this site's key"):
        other.open(["a"])
