from __future__ import annotations

from pathlib import Path

import pytest

from common.config import Unit
from common.errors import BudgetExceeded, LedgerError
from common.privacy.book import LedgerBook
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.events import GaussianRelease
from common.privacy.keys import SiteKey
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


def test_another_sites_ledgers_in_the_folder_are_left_alone(book: LedgerBook) -> None:
    other = LedgerBook(folder=book.folder, key=SiteKey(bytes(32)))
    with other.open(["a"]) as theirs, book.open(["a"]) as ours:
        ours.reserve(request_id="r", events=[RELEASE], purpose="x", budget=BUDGET)
        assert theirs.epsilon(1e-5) == 0.0


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
