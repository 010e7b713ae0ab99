"""What a person sees while a comparison goes on: a live line, or plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from simulations.comparison.forecast import Forecast


class CompareProgress:
    """Shows events of a comparison as they come.

    Attributes:
        is_done: whether there is a comparison to read.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self.is_done = False
        self._stage = "starting"
        self._began = time.monotonic()
        self._todo: dict[str, str] = {}
        self._ended: list[str] = []
        self._running: dict[str, float] = {}
        self._forecast: Forecast | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        match event["event"]:
            case "stage":
                self._stage, self._began = event["text"], time.monotonic()
                if self._live is None:
                    self._say(f"{self._stage} ...")
            case "planned":
                self._plan(event)
            case "began":
                self._running[event["name"]] = time.monotonic()
            case "ended":
                self._end(event)
            case "done":
                self.is_done = True
            case _:
                pass

    def _plan(self, event: dict[str, Any]) -> None:
        todo = event["todo"]
        self._todo = {name: told["title"] for name, told in todo.items()}
        self._ended.clear()
        self._forecast = Forecast(
            {name: tuple(told["kind"]) for name, told in todo.items()},
            num_workers=event["num_workers"],
        )
        patients = sum(event["sites"].values())
        have = event["num_trials"] - len(todo)
        self._say(
            f"{event['study']}: {patients} training patients at {len(event['sites'])} hospitals; "
            f"{event['num_trials']} trials, {have} of them have a result; "
            f"{event['num_workers']} at a time"
        )

    def _end(self, event: dict[str, Any]) -> None:
        name = event["name"]
        self._running.pop(name, None)
        self._ended.append(name)
        if self._forecast is not None:
            self._forecast.took(name, event["seconds"])
        told = f"FAILED: {event['problem']}"
        if event["problem"] is None:
            auroc = event["auroc"]
            told = "no AUROC" if auroc is None else f"AUROC {auroc:.3f}"
        again = " (begun again: its process had died)" if event["attempts"] > 1 else ""
        self._say(
            f"{len(self._ended)}/{len(self._todo)}  {self._todo[name]}: {told}{again}, "
            f"{event['seconds']:.0f} s  {self._left()}".rstrip()
        )

    def _left(self) -> str:
        """Words for how long the rest will take."""
        if self._forecast is None or len(self._ended) == len(self._todo):
            return ""
        now = time.monotonic()
        running = {name: now - began for name, began in self._running.items()}
        seconds = self._forecast.left(self._ended, running)
        if seconds is None:
            return ""
        if seconds < 90:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left"

    def _say(self, text: str) -> None:
        if self._live is None:
            print(text, file=self._console.file, flush=True)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        now = time.monotonic()
        head = f"{self._stage}, {now - self._began:.0f} s"
        if self._todo:
            head += f"  {len(self._ended)} of {len(self._todo)} trials  {self._left()}"
        running = [
            Text(f"  {self._todo[name]}, {now - began:.0f} s")
            for name, began in list(self._running.items())
        ]
        return Group(Text(head, style="bold"), *running)
