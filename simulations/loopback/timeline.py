"""Where the time of a deployment's rounds goes, from what its processes say and write.

Everything runs on one machine, so all times are of one clock. Lines are noted when they are seen,
which is up to the pause between two looks later; rows of ledgers and audit logs bear their own.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import RunFailed

_LATE_SECONDS = 1.0  # a process may say that it is done when the next one goes on already
# What ends each part of a hospital's way through a round, in order: the part, whose line, which.
_BEFORE_AGENT = (
    ("supernode_poll", "supernode", re.compile(r"Receiving: train message")),
    ("transfer_in", "supernode", re.compile(r"Received successfully")),
    ("task_poll", "gate", re.compile(r"admitted bundle")),
    ("process_start", "superexec", re.compile(r"[Ss]tart(ed)? `flwr-clientapp`")),
)
_AFTER_AGENT = (
    ("reply_poll", "supernode", re.compile(r"Sending: train message")),
    ("transfer_out", "supernode", re.compile(r"Sent successfully")),
)
PARTS = {
    "supernode_poll": "until the SuperNode asks the server again",
    "transfer_in": "the model, server to SuperNode",
    "task_poll": "until the task is asked for; the gate's check of the code",
    "process_start": "until the ClientApp's process is up",
    "client_app": "bundle unpacked and loaded, model fetched, agent asked",
    "agent": "policy, audit log, ledger, stored reply",
    "training": "private steps",
    "reply_poll": "ClientApp's reply; until the SuperNode looks for it",
    "transfer_out": "the update, SuperNode to server",
    "server": "reply found and checked, model averaged and saved",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """A line, and when it was seen (seconds since 1970)."""

    time: float
    source: str
    text: str


@dataclass(kw_only=True, slots=True)
class Ear:
    """Follows files that grow."""

    files: Mapping[str, Path]
    lines: list[Heard] = field(default_factory=list[Heard])
    _open: dict[str, BinaryIO] = field(default_factory=dict[str, BinaryIO])
    _rest: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def listen(self) -> None:
        """Notes the whole lines that are new."""
        now = time.time()
        for name, path in self.files.items():
            if name not in self._open:
                if not path.is_file():
                    continue
                self._open[name] = path.open("rb")
            *whole, self._rest[name] = (self._rest.get(name, b"") + self._open[name].read()).split(
                b"\n"
            )
            self.lines += [
                Heard(time=now, source=name, text=line.decode(errors="replace")) for line in whole
            ]

    def close(self) -> None:
        """Follows no more."""
        for file in self._open.values():
            file.close()
        self._open.clear()


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A part of time, in seconds since 1970."""

    begin: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round, and which hospital answered last in it."""

    number: int
    span: Span
    last: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.span.end - self.span.begin


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRound:
    """When a hospital's agent was asked and answered, and trained in between."""

    asked: Span
    trained: Span


def rounds(events: Iterable[Heard]) -> list[Round]:
    """The rounds that a run's events tell of; each begins where the one before ends.

    Raises:
        RunFailed: A round has no answer, or the first no beginning.
    """
    found: list[Round] = []
    begin: float | None = None
    last: dict[int, str] = {}
    for heard in events:
        event: dict[str, Any] = json.loads(heard.text)
        if event["event"] == "planned":
            begin = heard.time
        elif event["event"] == "site":
            last[event["round"]] = event["site"]
        elif event["event"] == "round":
            number = event["round"]
            if begin is None or number not in last:
                raise RunFailed(f"round {number}: nobody answered")
            span = Span(begin=begin, end=heard.time)
            found.append(Round(number=number, span=span, last=last[number]))
            begin = heard.time
    return found


def seconds_of(stamp: str) -> float:
    """A row's time, in seconds since 1970."""
    return datetime.fromisoformat(stamp).timestamp()


def asked_in(rows: Iterable[Mapping[str, Any]]) -> dict[int, Span]:
    """By round: from a training request's row in the audit log to its answer's."""
    asked: dict[int, tuple[int, float]] = {}
    found: dict[int, Span] = {}
    for row in rows:
        at = seconds_of(row["time"])
        if row["kind"] == "asked" and row["what"] == "train":
            asked[row["seq"]] = (row["round"], at)
        elif row["kind"] == "answered" and row["asked"] in asked:
            number, begin = asked[row["asked"]]
            found[number] = Span(begin=begin, end=at)
    return found


def covered(spans: Iterable[Span]) -> float:
    """Seconds that lie in at least one of them.

    >>> covered([Span(begin=0, end=2), Span(begin=1, end=3), Span(begin=5, end=6)])
    4.0
    """
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda one: one.begin):
        total += max(0.0, span.end - max(span.begin, until))
        until = max(until, span.end)
    return total


def parts(lines: Sequence[Heard], found: Round, site: SiteRound) -> dict[str, float]:
    """Seconds of each part of `PARTS` on the way of the hospital that answered last.

    They add up to the round.

    Raises:
        RunFailed: A line is missing.
    """
    moments = [("", found.span.begin)]
    arrived = found.span.begin
    for name, source, pattern in _BEFORE_AGENT:
        # a task is there, and may be asked for, while its message is still on the way
        at = _first(lines, found, source, pattern, arrived)
        moments.append((name, max(at, moments[-1][1])))
        arrived = moments[1][1]
    asked, trained = site.asked, site.trained
    moments.append(("client_app", asked.begin))
    held = asked.end - asked.begin - (trained.end - trained.begin)
    after = [("", asked.end)]
    for name, source, pattern in _AFTER_AGENT:
        after.append((name, _first(lines, found, source, pattern, after[-1][1])))
    after.append(("server", found.span.end))
    split = {"agent": held, "training": trained.end - trained.begin}
    return _steps(moments) | split | _steps(after)


def _first(
    lines: Sequence[Heard], found: Round, source: str, pattern: re.Pattern[str], begin: float
) -> float:
    name = f"{found.last}-{source}"
    for heard in lines:
        there = begin <= heard.time <= found.span.end + _LATE_SECONDS
        if there and heard.source == name and pattern.search(heard.text):
            return min(heard.time, found.span.end)
    raise RunFailed(f"round {found.number}: {name} does not say {pattern.pattern!r}")


def _steps(moments: Sequence[tuple[str, float]]) -> dict[str, float]:
    return {name: at - before for (_, before), (name, at) in pairwise(moments)}
