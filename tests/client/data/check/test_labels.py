from __future__ import annotations

from collections.abc import Callable

import pytest

from client.data.check.labels import LabelRule, broken_rules, odd_ones_in_folders
from client.data.study import Record
from common.errors import DataError

Make = Callable[..., Record]


@pytest.mark.parametrize(
    ("text", "label", "cell", "broken"),
    [
        ("1: M >= 3", 1, "2", True),
        ("1: M >= 3", 1, "3", False),
        ("1: M >= 3", 0, "2", False),
        ("1:M>3", 1, "3", True),
        ("0: M <= 3", 0, "4.5", True),
        ("0: M < 3", 0, "3", True),
        ("0: M = -1", 0, "-1.0", False),
        ("0: a column = 1", 0, "2", True),
        ("1: M >= 3", 1, "", False),
        ("1: M >= 3", 1, "unclear", False),
    ],
)
def test_rules(text: str, label: int, cell: str, broken: bool) -> None:
    assert LabelRule.parse(text).is_broken_by(label, cell) is broken


@pytest.mark.parametrize("text", ["", "M >= 3", "1: M", "1: M >= three", "x: M >= 3", "1: >= 3"])
def test_strange_rules_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"data\.label_rules=.*must read LABEL: COLUMN"):
        LabelRule.parse(text)


def test_rows_that_break_a_rule(make_record: Make) -> None:
    records = [make_record(row, None, 1) for row in (4, 2, 3)] + [make_record(7, None, 0)]
    cells = {row: {"M": value} for row, value in ((2, "1"), (3, "5"), (4, "2"), (7, "1"))}
    rules = [LabelRule.parse("1: M >= 3"), LabelRule.parse("0: M <= 3")]
    (finding,) = broken_rules(records, rules, cells)
    assert finding.rows == (2, 4)
    assert finding.text == "2 images with label 1 break the rule M >= 3."


def _folders(make_record: Make, **labels: str) -> list[Record]:
    return [
        make_record(100 * place + index, None, int(label), at=f"{name}/{index}.png")
        for place, (name, own) in enumerate(labels.items(), start=1)
        for index, label in enumerate(own)
    ]


def test_an_image_in_the_wrong_folder(make_record: Make) -> None:
    records = _folders(make_record, normal="0" * 39 + "1", abnormal="1" * 40)
    (finding,) = odd_ones_in_folders(records)
    assert finding.rows == (139,)
    assert finding.severity.value == "warning"


@pytest.mark.parametrize(
    "labels",
    [
        {"normal": "0" * 40, "abnormal": "1" * 40},
        {"all": "0" * 39 + "1"},  # one folder for everything: a rare class
        {"ward": "0" * 39 + "1", "clinic": "1" + "0" * 39},  # rare in every folder
        {"a": "0" * 30 + "1" * 10, "b": "1" * 40},  # too many for a mistake
        {"a": "0001", "b": "1" * 40},  # too few to say
    ],
)
def test_what_is_no_wrong_folder(labels: dict[str, str], make_record: Make) -> None:
    assert odd_ones_in_folders(_folders(make_record, **labels)) == []


def test_findings_side_by_side_are_one_question(make_record: Make) -> None:
    normal = [make_record(row, None, 0, 0, at=f"0/{row}.png") for row in range(1, 40)]
    abnormal = [
        make_record(row, None, row % 2, 1 - row % 2, at=f"1/{row}.png") for row in range(40, 80)
    ]
    misplaced = make_record(80, None, 0, 1, at="0/80.png")
    assert odd_ones_in_folders([*normal, *abnormal]) == []
    (finding,) = odd_ones_in_folders([*normal, *abnormal, misplaced])
    assert finding.rows == (80,)
