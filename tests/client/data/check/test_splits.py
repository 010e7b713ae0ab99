from __future__ import annotations

from collections.abc import Callable

from client.data.check.finding import Severity
from client.data.check.splits import torn_patients
from client.data.study import Record

Make = Callable[..., Record]


def test_whole_patients_are_fine(make_record: Make) -> None:
    records = [make_record(row, f"p{row // 2}", split="train", site="A") for row in range(1, 7)]
    records.append(make_record(9, "p9", split="test", site="B"))
    assert torn_patients(records) == []
    assert torn_patients([make_record(1, "p"), make_record(2, "p")]) == []


def test_patients_on_two_sides_block_training(make_record: Make) -> None:
    records = [
        make_record(1, "secret", split="train", site="A"),
        make_record(2, "secret", split="test", site="A"),
        make_record(3, "other", split="test", site="A"),
        make_record(4, "third", split="train", site="A"),
        make_record(5, "third", split="train", site="B"),
    ]
    split, site = torn_patients(records)
    assert (split.code, split.rows) == ("patients_across_splits", (1, 2))
    assert (site.code, site.rows) == ("patients_across_sites", (4, 5))
    assert {split.severity, site.severity} == {Severity.blocks}
    assert split.text == "1 patient of 3 is in two parts of the official split."
    assert "secret" not in repr(split) + split.text
