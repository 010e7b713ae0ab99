"""``fedward bench ledger``: how long the ledger takes, on this machine and disk."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import UsageError

if TYPE_CHECKING:
    from common.privacy.events import Event

_DELTA = 1e-5
_EVENTS_PER_REQUEST = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one action, done several times: on the clock, and of this process's work in it."""

    name: str
    samples: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Median and spread, JSON-ready."""
        ordered = sorted(clock for clock, _ in self.samples)
        return {
            "name": self.name,
            "times": len(ordered),
            "median_seconds": statistics.median(ordered),
            "least_seconds": ordered[0],
            "p95_seconds": ordered[math.ceil(0.95 * len(ordered)) - 1],
            "most_seconds": ordered[-1],
            "processor_seconds": statistics.median(work for _, work in self.samples),
        }


def ledger(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="A folder on the disk to measure; nothing is left in it.")
    ] = Path(),
    num_events: Annotated[int, typer.Option(min=50, help="Events in the ledger.")] = 10_000,
    times: Annotated[int, typer.Option(min=1, help="How often each action is done.")] = 50,
) -> None:
    """Time of a query over many mixed events, and of reserve and commit."""
    from common.files import check_out, write_atomically

    check_out("--json", json_file)
    try:
        with tempfile.TemporaryDirectory(prefix=".fedward-bench-", dir=folder) as work:
            timings = measure(Path(work) / "site.sqlite", num_events=num_events, times=times)
        figures = [timing.to_dict() for timing in timings]
        if json_file is not None:
            text = json.dumps({"num_events": num_events, "timings": figures}, indent=2) + "\n"
            write_atomically(json_file, text)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: {error.strerror}") from error
    typer.echo(
        f"{'milliseconds':<58}{'median':>10}{'least':>10}{'95 %':>10}{'most':>10}{'processor':>11}"
    )
    for one in figures:
        names = ("median", "least", "p95", "most", "processor")
        figures_of = (f"{1000 * one[f'{name}_seconds']:>10.2f}" for name in names)
        typer.echo(f"{one['name']:<58}" + "".join(figures_of))


def measure(path: Path, *, num_events: int, times: int) -> list[Timing]:
    """The timings, on a new ledger at ``path`` that is filled first."""
    from common.privacy.budget import Budget
    from common.privacy.events import PoissonGaussianSteps
    from common.privacy.ledger import Ledger

    events = mixed_events(num_events)
    uncapped = Budget(epsilon=math.inf, delta=_DELTA)
    capped = Budget(epsilon=1e6, delta=_DELTA)
    recipe = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.2, steps=5)

    def charge(book: Ledger, request_id: str, asked: list[Event], budget: Budget) -> None:
        book.reserve(request_id=request_id, events=asked, purpose="bench", budget=budget)
        book.commit(request_id)

    with Ledger.open(path.with_name("new.sqlite"), cohort="new") as new:
        charge(new, "warm", [recipe], capped)
        fresh = _timed(times, lambda n: charge(new, f"r{n}", [recipe], capped))
    with Ledger.open(path, cohort="bench") as full:
        for start in range(0, num_events, _EVENTS_PER_REQUEST):
            charge(full, f"fill {start}", events[start : start + _EVENTS_PER_REQUEST], uncapped)
        queries: list[tuple[float, float]] = []
        charges: list[tuple[float, float]] = []
        for number in range(times):
            charges += _timed(1, lambda _, n=number: charge(full, f"r{n}", [recipe], capped))
            # Another delta each time: an answer that is kept from before would measure nothing.
            delta = _DELTA * (1 + (number + 1) / 1e6)
            queries += _timed(1, lambda _, d=delta: full.epsilon(d))
    with path.with_name("block").open("wb", buffering=0) as block:
        flushes = _timed(times, lambda _: (block.write(bytes(4096)), os.fsync(block.fileno())))
    opened = _timed(5, lambda _: Ledger.open(path, cohort="bench").close())
    many = f"{num_events:,} mixed events"
    return [
        Timing(name=f"query over {many}, warm", samples=tuple(queries)),
        Timing(name="reserve + commit, capped, small ledger", samples=tuple(fresh)),
        Timing(name=f"reserve + commit, capped, {many}", samples=tuple(charges)),
        Timing(name=f"open and verify, {many}", samples=tuple(opened)),
        Timing(name="the disk alone: 4 KiB written and flushed", samples=tuple(flushes)),
    ]


def mixed_events(num_events: int) -> list[Event]:
    """Training at many rates and noises, releases, and image-level training seen by patients."""
    from common.privacy.events import (
        GaussianRelease,
        GroupPoissonGaussianSteps,
        PoissonGaussianSteps,
    )

    found: list[Event] = []
    for number in range(num_events):
        noise = 2.0 + 0.1 * (number // 10 % 10)
        rate = 0.01 * (1 + number // 100 % 5)
        match number % 10:
            case 0 | 1:
                found.append(GaussianRelease(noise_multiplier=50.0 * noise))
            case 2:
                found.append(
                    GroupPoissonGaussianSteps(
                        sampling_rate=rate, noise_multiplier=2 * noise, steps=2, group_size=4
                    )
                )
            case _:
                found.append(
                    PoissonGaussianSteps(
                        sampling_rate=rate, noise_multiplier=noise, steps=1 + number % 7
                    )
                )
    return found


def _timed(times: int, action: Callable[[int], object]) -> list[tuple[float, float]]:
    samples: list[tuple[float, float]] = []
    for number in range(times):
        clock, work = time.perf_counter(), time.process_time()
        action(number)
        samples.append((time.perf_counter() - clock, time.process_time() - work))
    return samples
