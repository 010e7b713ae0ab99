"""The same pixels more than once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from client.data.check.finding import Finding, Severity, plural
from client.data.check.inspection import ImageFacts
from client.data.study import Record

Group = tuple[Record, ...]


def groups_of_equals(records: Sequence[Record], facts: Sequence[ImageFacts]) -> tuple[Group, ...]:
    """Records whose decoded images are equal in every pixel, in groups of two or more.

    An image that was only rescaled, recompressed or cropped is another image here.
    """
    by_row = {record.row: record for record in records}
    groups: dict[bytes, list[Record]] = {}
    for fact in facts:
        if fact.digest is not None:
            groups.setdefault(fact.digest, []).append(by_row[fact.row])
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def duplicates(groups: Sequence[Group]) -> list[Finding]:
    """What equal images mean, by whom they are shared; a group may mean several things."""
    across = [group for group in groups if _differ(group, lambda record: record.patient)]
    torn = [group for group in groups if _differ(group, lambda record: record.labels)]
    leaking = [group for group in groups if _differ(group, lambda record: record.split)]
    rest = [group for group in groups if group not in (*across, *torn, *leaking)]
    return [
        *_finding(
            across,
            "same_pixels_two_patients",
            Severity.warning,
            "under two patients or more",
            "Find out whose they are. A person known under two numbers is protected less than "
            "epsilon says; give both the same number, or take one row out.",
        ),
        *_finding(
            torn,
            "same_pixels_two_labels",
            Severity.warning,
            "under different labels",
            "Find out which label is right.",
        ),
        *_finding(
            leaking,
            "same_pixels_two_splits",
            Severity.warning,
            "in more than one part of the official split",
            "Take them out of all parts but one: what was trained on cannot test a model.",
        ),
        *_finding(
            rest,
            "same_pixels",
            Severity.note,
            "under one patient with one label",
            "Take the repeated rows out; they count twice in training.",
        ),
    ]


def _differ(group: Group, of: Callable[[Record], object]) -> bool:
    return len({of(record) for record in group}) > 1


def _finding(
    groups: Sequence[Group], code: str, severity: Severity, where: str, remedy: str
) -> list[Finding]:
    if not groups:
        return []
    rows = tuple(sorted(record.row for group in groups for record in group))
    pictures = "picture is" if len(groups) == 1 else "pictures are"
    return [
        Finding(
            code=code,
            severity=severity,
            text=f"{len(groups):,} {pictures} there more than once {where} "
            f"({plural(len(rows), 'row')}, equal in every pixel).",
            remedy=remedy,
            rows=rows,
        )
    ]
