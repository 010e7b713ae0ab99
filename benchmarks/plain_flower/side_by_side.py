"""Plain Flower with Opacus and ``fedward simulate`` in turn: wall and CPU time of each command.

``python benchmarks/plain_flower/side_by_side.py [--data FOLDER] [--turns N] [--json FILE]``; the
folder is the CBIS-DDSM masses' (docs/studies.md), and without it phantoms are drawn. CPU time is
that of all processes that a command starts, Ray's included, looked up four times a second: Ray
ignores the end of its workers, so their times reach no parent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import psutil
from PIL import Image

import configs
from client.data.cohort import Cohort
from common.config import Config
from server.recipe import plan
from simulations.hosting import ray_here
from simulations.hosting.child import QUIET
from simulations.hosting.process_tree import adopt_orphans, end_descendants
from simulations.sites import dealt, load

TASK = (
    *("model=vit_tiny", "data.image_size=64", "finetune=all", "training.optimizer=adam"),
    *("federation.num_sites=5", "federation.rounds=3", "federation.steps_per_round=4"),
    *("federation.evaluate_every=3", "privacy.sampling_rate=0.25", "privacy.images_per_patient=1"),
    "privacy.epsilon=8",
)
THREADS = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one command.

    Attributes:
        wall_seconds: from its start until its last process has ended.
        cpu_seconds: of all of its processes.
    """

    wall_seconds: float
    cpu_seconds: float


def main() -> None:
    """Let the contestants take turns; print and keep what they cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the CBIS-DDSM masses")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="also on a Ray that runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    asked = parser.parse_args()
    if asked.warm and ray_here.address_here() is None:
        parser.error("--warm: no Ray runs; start one with fedward ray start")
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="fedward-plain-") as name:
        folder = Path(name)
        words = words_of(asked.data, folder)
        config = configs.load(list(words))
        noise = export(config, folder)
        contestants: dict[str, Callable[[int], list[str]]] = {
            "plain Flower, Opacus": lambda _: [
                *(sys.executable, str(Path(__file__).with_name("app.py"))),
                *(str(folder), repr(noise)),
            ],
            "fedward": lambda turn: fedward(*words, f"run_dir={folder / f'own-{turn}'}"),
        }
        if asked.warm:
            contestants["fedward, Ray runs"] = lambda turn: fedward(
                *words, f"run_dir={folder / f'warm-{turn}'}", "simulation.ray_address=auto"
            )
        costs: dict[str, list[Cost]] = {who: [] for who in contestants}
        for turn in range(asked.turns):
            for who, command_of in contestants.items():
                costs[who].append(cost_of(command_of(turn), folder, on_ray="Ray runs" in who))
                last = costs[who][-1]
                print(
                    f"turn {turn + 1}, {who}: {last.wall_seconds:.1f} s, "
                    f"CPU {last.cpu_seconds:.1f} s",
                    flush=True,
                )
    found = {who: [asdict(cost) for cost in some] for who, some in costs.items()}
    plain, ours = costs["plain Flower, Opacus"], costs["fedward"]
    ratios = {
        measure: statistics.median(
            getattr(a, measure) / getattr(b, measure) for a, b in zip(plain, ours, strict=True)
        )
        for measure in ("wall_seconds", "cpu_seconds")
    }
    print(f"faster: wall {ratios['wall_seconds']:.1f}x, CPU {ratios['cpu_seconds']:.1f}x")
    if asked.json is not None:
        asked.json.write_text(json.dumps({"costs": found, "ratios": ratios}, indent=2) + "\n")


def words_of(data: Path | None, folder: Path) -> tuple[str, ...]:
    """The task, on the masses or on phantoms of the same number of patients."""
    if data is not None:
        return ("experiment=cbis_masses", f"data.root={data.absolute()}", *TASK)
    phantoms = folder / "phantoms"
    phantoms.mkdir()
    return (
        "experiment=demo",
        f"data.root={phantoms}",
        "data.phantom.num_train_per_site=115",
        *TASK,
    )


def export(config: Config, folder: Path) -> float:
    """Write each hospital's images as PNG files for the plain script; the noise of the run."""
    study, split, shares = dealt(config, folder / "phantoms", b"side by side, no patient")
    num_patients = 0
    for name, records in shares.items():
        cohort = load(study, records, config)
        num_patients += cohort.num_patients
        write(cohort, folder / "train" / name)
    write(load(study, split.test, config), folder / "test")
    return plan(config, num_patients=num_patients).noise_multiplier


def write(cohort: Cohort, folder: Path) -> None:
    """One folder for each patient."""
    for place, patient in enumerate(cohort.patients):
        own = folder / f"{int(patient):05d}"
        own.mkdir(parents=True, exist_ok=True)
        pixels = np.round(np.asarray(cohort.images[place, 0]) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(own / f"{place:05d}_{int(cohort.labels[place])}.png")


def fedward(*words: str) -> list[str]:
    """The command as a user types it."""
    return [str(Path(sys.executable).with_name("fedward")), "simulate", *words]


def cost_of(command: list[str], folder: Path, *, on_ray: bool) -> Cost:
    """Run ``command`` from a folder of its own to the end of all of its processes.

    Raises:
        SystemExit: if it fails.
    """
    work = Path(tempfile.mkdtemp(dir=folder))
    began, watch = time.monotonic(), CpuWatch(on_ray=on_ray)
    with watch:
        done = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, **QUIET, **THREADS},
            capture_output=True,
            text=True,
            check=False,
        )
    end_descendants()
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    for line in done.stdout.splitlines():
        if line.startswith(("{", "Test AUROC")):
            print(f"  {line}", flush=True)
    return Cost(wall_seconds=time.monotonic() - began, cpu_seconds=watch.seconds)


class CpuWatch:
    """CPU seconds of all processes below this one, and of a Ray that stays, since the beginning."""

    def __init__(self, *, on_ray: bool) -> None:
        self._on_ray = on_ray
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._used: dict[tuple[int, float], float] = {}
        self._before: dict[tuple[int, float], float] = {}

    @property
    def seconds(self) -> float:
        """Until now."""
        return sum(used - self._before.get(who, 0.0) for who, used in self._used.items())

    def __enter__(self) -> Self:
        self._look()
        self._before = dict(self._used)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        below = psutil.Process().children(recursive=True)
        for process in (*below, *(ray_here.processes() if self._on_ray else ())):
            try:
                times = process.cpu_times()
                self._used[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue  # what it used was seen before

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self._look()


if __name__ == "__main__":
    main()
