"""Labels that other columns, or the folder of the image, speak against."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.check.finding import Finding, Severity, plural
from client.data.study import Record
from common.errors import DataError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_RULE = re.compile(r"\s*(\d+)\s*:\s*([^\s<>=][^<>=]*?)\s*(>=|<=|>|<|=)\s*(-?\d+(?:\.\d+)?)\s*")
_SMALLEST_FOLDER = 10  # images; below it, a folder says nothing about its members
_LARGEST_MINORITY = 0.05  # share of a folder that may disagree and still look like a mistake


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRule:
    """What a column must hold for images of one label, such as ``1: Malignancy_value >= 3``.

    >>> LabelRule.parse("1: Malignancy_value >= 3")
    LabelRule(label=1, column='Malignancy_value', comparison='>=', bound=3.0)
    """

    label: int
    column: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> LabelRule:
        """Reads ``LABEL: COLUMN COMPARISON NUMBER``.

        Raises:
            DataError: The text reads differently.
        """
        match = _RULE.fullmatch(text)
        if match is None:
            raise DataError(
                f"data.label_rules={text}: must read LABEL: COLUMN COMPARISON NUMBER, such as "
                "'1: Malignancy_value >= 3'"
            )
        label, column, comparison, bound = match.groups()
        return cls(label=int(label), column=column, comparison=comparison, bound=float(bound))

    def is_broken_by(self, label: int, cell: str) -> bool:
        """Whether an image of ``label`` speaks against the rule; a cell without a number cannot."""
        try:
            value = float(cell)
        except ValueError:
            return False
        return label == self.label and not _COMPARISONS[self.comparison](value, self.bound)


def broken_rules(
    records: Sequence[Record], rules: Sequence[LabelRule], cells: Mapping[int, Mapping[str, str]]
) -> list[Finding]:
    """Rows that break a rule.

    Args:
        records: Records with one label each.
        rules: The rules.
        cells: By row, the cells of the columns that the rules name.
    """
    findings: list[Finding] = []
    for rule in rules:
        rows = tuple(
            record.row
            for record in sorted(records, key=lambda record: record.row)
            if rule.is_broken_by(record.labels[0], cells[record.row][rule.column])
        )
        if rows:
            findings.append(
                Finding(
                    code="label_rule",
                    severity=Severity.warning,
                    text=f"{plural(len(rows), 'image')} with label {rule.label} "
                    f"{'breaks' if len(rows) == 1 else 'break'} the rule {rule.column} "
                    f"{rule.comparison} {rule.bound:g}.",
                    remedy="Ask who labelled them which of the two columns is right.",
                    rows=rows,
                )
            )
    return findings


def odd_ones_in_folders(records: Sequence[Record]) -> list[Finding]:
    """Images whose label differs from that of nearly all others in their folder.

    Many studies keep one folder for each class: a single image of another label in it lies in the
    wrong folder or has the wrong label. Several findings side by side count as one question, any
    finding or none.
    """
    folders: dict[Path, list[Record]] = {}
    for record in records:
        folders.setdefault(record.path.parent, []).append(record)
    odd: list[int] = []
    for members in folders.values():
        labels = Counter(_question(record) for record in members)
        usual, count = labels.most_common(1)[0]
        others = len(members) - count
        if len(members) >= _SMALLEST_FOLDER and 0 < others <= _LARGEST_MINORITY * len(members):
            odd += [record.row for record in members if _question(record) != usual]
    # Where most folders are mixed, a rare class is rare and not misplaced.
    mixed = sum(len({_question(record) for record in own}) > 1 for own in folders.values())
    if not odd or len(folders) < 2 or mixed > len(folders) / 2:
        return []
    verb = "lies in a folder" if len(odd) == 1 else "lie in folders"
    return [
        Finding(
            code="odd_in_folder",
            severity=Severity.warning,
            text=f"{plural(len(odd), 'image')} {verb} whose other images have another label.",
            remedy="Find out whether the folder or the table is wrong; training follows the table.",
            rows=tuple(sorted(odd)),
        )
    ]


def _question(record: Record) -> int:
    return record.labels[0] if len(record.labels) == 1 else int(1 in record.labels)
