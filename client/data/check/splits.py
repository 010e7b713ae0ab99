"""Patients on two sides of the official split, or at two hospitals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from client.data.check.finding import Finding, Severity, plural
from client.data.study import Record


def torn_patients(records: Sequence[Record]) -> list[Finding]:
    """Patients that are in two places where each may be in one only; training refuses them."""
    return [
        *_torn(
            records,
            lambda record: record.split,
            "patients_across_splits",
            "in two parts of the official split",
            "Mend the table, or let the patients be split anew with data.columns.split=null.",
        ),
        *_torn(
            records,
            lambda record: record.site,
            "patients_across_sites",
            "at two hospitals of the study",
            "Mend the table, or pool the study with data.columns.site=null.",
        ),
    ]


def _torn(
    records: Sequence[Record],
    of: Callable[[Record], str | None],
    code: str,
    where: str,
    remedy: str,
) -> list[Finding]:
    places: dict[str, set[str]] = {}
    for record in records:
        place = of(record)
        if place is not None:
            places.setdefault(record.patient, set()).add(place)
    torn = {patient for patient, own in places.items() if len(own) > 1}
    if not torn:
        return []
    verb = "is" if len(torn) == 1 else "are"
    return [
        Finding(
            code=code,
            severity=Severity.blocks,
            text=f"{plural(len(torn), 'patient')} of {len(places):,} {verb} {where}.",
            remedy=remedy,
            rows=tuple(sorted(record.row for record in records if record.patient in torn)),
        )
    ]
