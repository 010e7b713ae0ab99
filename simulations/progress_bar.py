"""How far a command is, on a terminal and in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """A bar with the time left on a terminal, else a line every ten seconds; on stderr."""

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = _SECONDS_BETWEEN_LINES,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._between = seconds_between_lines
        self._stage = ""
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=self._console, transient=True
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Takes in that ``done`` of ``total`` are done."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._last = stage, now, now
            if self._bar is not None:
                self._bar.add_task(stage, total=total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[-1], completed=done)
        elif now - self._last >= self._between:
            self._last = now
            left = (now - self._began) * (total - done) / done
            print(f"{stage}: {done} of {total}, about {left:.0f} s left", file=sys.stderr)
