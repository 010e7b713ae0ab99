"""What a doctor finds: one line each, with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

SCHEMA = "fedward.checkup/1"


class Level(StrEnum):
    """How bad it is."""

    ok = "ok"
    warn = "warn"
    fail = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, in a word or two.
        level: how bad it is.
        text: what was found.
        remedy: what to do about it; empty if nothing need be done.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check=check, level=Level.ok, text=text)


def warn(check: str, text: str, remedy: str) -> Finding:
    """It works, and should be looked at."""
    return Finding(check=check, level=Level.warn, text=text, remedy=remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check=check, level=Level.fail, text=text, remedy=remedy)


def failed(found: Iterable[Finding]) -> bool:
    """Whether anything does not work."""
    return any(one.level is Level.fail for one in found)


def lines(found: Sequence[Finding]) -> list[str]:
    """As a terminal shows it.

    >>> lines([ok("disk", "12 GB free"), fail("port", "closed", "open it")])
    ['ok    disk: 12 GB free', 'fail  port: closed. Remedy: open it']
    """
    return [
        f"{one.level:<4}  {one.check}: {one.text}" + (f". Remedy: {one.remedy}" * bool(one.remedy))
        for one in found
    ]


def to_dict(found: Sequence[Finding]) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "schema": SCHEMA,
        "ok": not failed(found),
        "findings": [
            {
                "check": one.check,
                "level": one.level.value,
                "text": one.text,
                "remedy": one.remedy,
            }
            for one in found
        ],
    }
