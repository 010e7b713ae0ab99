"""``fedward bench memory``: what a simulation keeps in memory, by number of sites and rounds."""

from __future__ import annotations

import csv
import itertools
import json
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from common.errors import RunFailed
from common.files import check_out, write_atomically

_LOOK_SECONDS = 0.5
_PATIENTS = 24  # of a hospital, those held out included
_COLUMNS = (
    *("data.columns.image=file", "data.columns.patient=patient", "data.columns.label=malignant"),
    *("data.columns.site=hospital", "partition.kind=natural"),
)
_MODEL = ("model=vit_tiny", "data.image_size=64", "finetune=all", "privacy.epsilon=8")


class Part(StrEnum):
    """Whose process it is."""

    server = "server"
    hospitals = "hospitals"
    ray = "ray"


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """One run.

    Attributes:
        server_mb: largest private memory of the process that holds the rounds, during them.
        hospital_process_mb: of any process that hospitals live in.
        all_mb: of all processes of the run together, Ray's and its object store included; what
            several share counts once.
        round_seconds: median.
    """

    num_sites: int
    sites_per_round: int
    rounds: int
    server_mb: float
    hospital_process_mb: float
    all_mb: float
    round_seconds: float


def memory(
    sites: Annotated[
        list[int] | None, typer.Option(min=1, help="Simulated hospitals; may be repeated.")
    ] = None,
    rounds: Annotated[
        list[int] | None, typer.Option(min=1, help="Rounds of a run; may be repeated.")
    ] = None,
    asked: Annotated[int, typer.Option(min=1, help="Hospitals that a round asks.")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Peak memory of runs over 5, 50 and 500 hospitals and of 10 and 100 rounds.

    Each run has a Ray of its own. ViT-Tiny at 64 pixels on images of noise, all layers, with DP,
    one step a round.
    """
    check_out("--json", json_file)
    peaks: list[Peak] = []
    typer.echo("  sites  rounds  server MB  hospitals' process MB  all MB  s a round")
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as name:
        for num_sites, num_rounds in itertools.product(sites or [5, 50, 500], rounds or [10, 100]):
            peak = measure(Path(name), num_sites, num_rounds, asked=min(asked, num_sites))
            peaks.append(peak)
            typer.echo(
                f"{num_sites:7}{num_rounds:8}{peak.server_mb:11.0f}"
                f"{peak.hospital_process_mb:23.0f}{peak.all_mb:8.0f}{peak.round_seconds:11.2f}"
            )
    if json_file is not None:
        found = {"runs": [asdict(peak) for peak in peaks]}
        write_atomically(json_file, json.dumps(found, indent=2) + "\n")


def measure(folder: Path, num_sites: int, rounds: int, *, asked: int) -> Peak:
    """Run once in a child of this process and watch.

    Raises:
        RunFailed: if the run does not complete.
    """
    import configs
    from simulations.simulate import simulate

    words = [
        *("data=table", *_MODEL, f"data.root={_study(folder, num_sites)}", *_COLUMNS),
        *(f"federation.num_sites={num_sites}", f"federation.sites_per_round={asked}"),
        *(f"federation.rounds={rounds}", f"federation.evaluate_every={rounds}"),
        *("federation.steps_per_round=1", "privacy.images_per_patient=1"),
        f"run_dir={folder / f'run-{num_sites}-{rounds}'}",
    ]
    watch = Watch()

    def listen(event: dict[str, Any]) -> None:
        match event["event"]:
            case "planned":
                watch.begin()
            case "round":
                watch.seconds.append(event["seconds"])
            case "stage":
                watch.end()  # what comes before the rounds, and after them
            case _:
                pass

    try:
        code = simulate(configs.load(words), listen)
    finally:
        watch.end()
    if code:
        raise RunFailed(f"a run of the benchmark ended with exit code {code}")
    return Peak(
        num_sites=num_sites,
        sites_per_round=asked,
        rounds=rounds,
        server_mb=watch.peaks[Part.server] / 1e6,
        hospital_process_mb=watch.peaks[Part.hospitals] / 1e6,
        all_mb=watch.total / 1e6,
        round_seconds=statistics.median(watch.seconds),
    )


def _study(folder: Path, num_sites: int) -> Path:
    """A table of grey noise, 24 patients with an image each at every hospital."""
    import numpy as np
    from PIL import Image

    root = folder / f"study-{num_sites}"
    if root.is_dir():
        return root
    root.mkdir()
    draw = np.random.default_rng(0)
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "patient", "malignant", "hospital"])
        for number in range(_PATIENTS * num_sites):
            pixels = draw.integers(0, 256, (64, 64), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{number}.png", compress_level=0)
            table.writerow([f"{number}.png", number, number % 2, f"site-{number // _PATIENTS}"])
    return root


@dataclass(kw_only=True, slots=True)
class Watch:
    """Looks at the memory of this process's descendants, twice a second.

    Attributes:
        peaks: largest private memory of one process of each kind, in bytes.
        total: largest memory of all together, shared memory counted once.
        seconds: of each round.
    """

    peaks: dict[Part, int] = field(default_factory=lambda: dict.fromkeys(Part, 0))
    total: int = 0
    seconds: list[float] = field(default_factory=list[float])
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        """From now on."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Until now."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._over, self._thread = threading.Event(), None

    def look(self) -> None:
        """Once."""
        total = 0
        for process in psutil.Process().children(recursive=True):
            try:
                part, used = part_of(process.cmdline()), process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it has ended meanwhile
            self.peaks[part] = max(self.peaks[part], used.uss)
            total += used.pss
        self.total = max(self.total, total)

    def _watch(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self.look()
            self._over.wait(max(0.0, _LOOK_SECONDS - (time.monotonic() - began)))


def part_of(words: list[str]) -> Part:
    """Whose process has this command line.

    >>> part_of(["python", "-P", "-m", "simulations.runner", "/tmp/run"])
    <Part.server: 'server'>
    >>> part_of(["ray::Host.answer"]), part_of(["/x/ray/core/src/ray/raylet/raylet", "--a=b"])
    (<Part.hospitals: 'hospitals'>, <Part.ray: 'ray'>)
    """
    if any(word.startswith("ray::Host") for word in words):
        return Part.hospitals
    return Part.server if "simulations.runner" in words else Part.ray
