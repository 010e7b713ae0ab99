from __future__ import annotations

from collections.abc import Callable

from client.data.check.duplicates import duplicates, groups_of_equals
from client.data.check.finding import Severity
from client.data.check.inspection import ImageFacts
from client.data.study import Record

Make = Callable[..., Record]


def _codes(*records: Record, digests: str) -> dict[str, tuple[int, ...]]:
    facts = [
        ImageFacts(row=record.row, shape=(1, 1), digest=letter.encode() if letter != "-" else None)
        for record, letter in zip(records, digests, strict=True)
    ]
    return {f.code: f.rows for f in duplicates(groups_of_equals(records, facts))}


def test_different_images_are_no_duplicates(make_record: Make) -> None:
    assert _codes(make_record(1), make_record(2), digests="ab") == {}


def test_unreadable_images_equal_nothing(make_record: Make) -> None:
    assert _codes(make_record(1), make_record(2), digests="--") == {}


def test_the_same_pixels_twice_under_one_patient_is_a_note(make_record: Make) -> None:
    records = [make_record(row, "p", 1, split="train") for row in (1, 2, 3)]
    facts = [ImageFacts(row=row, digest=b"x") for row in (1, 2)] + [ImageFacts(row=3, digest=b"y")]
    (finding,) = duplicates(groups_of_equals(records, facts))
    assert (finding.code, finding.severity, finding.rows) == ("same_pixels", Severity.note, (1, 2))
    assert finding.text.startswith("1 picture is there more than once under one patient")


def test_the_same_pixels_under_two_patients_labels_and_splits(make_record: Make) -> None:
    records = [
        make_record(1, "a", 0, split="train"),
        make_record(2, "b", 0, split="train"),
        make_record(3, "c", 0, split="train"),
        make_record(4, "c", 1, split="train"),
        make_record(5, "d", 0, split="train"),
        make_record(6, "d", 0, split="test"),
        make_record(7, "e", 0, split="train"),
        make_record(8, "f", 1, split="test"),
    ]
    assert _codes(*records, digests="xxyyzzww") == {
        "same_pixels_two_patients": (1, 2, 7, 8),
        "same_pixels_two_labels": (3, 4, 7, 8),
        "same_pixels_two_splits": (5, 6, 7, 8),
    }
