"""Something about a study that its engineer should know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


class Severity(Enum):
    """What follows from a finding."""

    blocks = "blocks"
    warning = "warning"
    note = "note"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One finding; derived from patients, stays at the site.

    Attributes:
        code: Its kind, from a fixed list, for scripts.
        severity: ``blocks`` if training would refuse the study.
        text: What was found, in one sentence without names of patients or files.
        remedy: What to do about it.
        rows: The images it is about, ascending; empty where it is about the whole study.
    """

    code: str
    severity: Severity
    text: str
    remedy: str
    rows: tuple[int, ...] = field(default=(), repr=False)


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    >>> plural(1, "image"), plural(2, "image"), plural(1200, "study", "studies")
    ('1 image', '2 images', '1,200 studies')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst first; otherwise as they came."""
    ranks = {severity: rank for rank, severity in enumerate(Severity)}
    return tuple(sorted(findings, key=lambda finding: ranks[finding.severity]))
