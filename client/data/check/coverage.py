"""What a study does not say of its patients."""

from __future__ import annotations

from collections.abc import Sequence

from client.data.check.finding import Finding, Severity
from client.data.study import Record

_EXPECTED = ("age", "sex")


def unsaid(records: Sequence[Record]) -> list[Finding]:
    """A note where age, sex or hospital are unknown: results cannot be broken down by them."""
    missing = [name for name in _EXPECTED if not any(name in record.groups for record in records)]
    if not any(record.site for record in records):
        missing.append("hospital")
    if not missing:
        return []
    return [
        Finding(
            code="unsaid",
            severity=Severity.note,
            text=f"As it is configured, the study does not say the {' or '.join(missing)} of its "
            "patients.",
            remedy="If the table has such columns, name them in data.columns.groups and "
            "data.columns.site. Without age and sex nobody sees whom a model fails; without "
            "hospitals, simulated ones are dealt out.",
        )
    ]
