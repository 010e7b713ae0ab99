"""``fedward bench simulation``: what a simulated federation costs beside its training."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import RunFailed
from common.files import check_out, write_atomically
from simulations.hosting import ray_here

_MODEL = ("model=vit_tiny", "data.image_size=64", "finetune=all", "privacy.epsilon=8")


def simulation(
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of each run.")] = 20,
    sites: Annotated[int, typer.Option(min=1, help="Simulated hospitals.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Private steps of a hospital in a round.")] = 4,
    patients: Annotated[int, typer.Option(min=8, help="Training patients of a hospital.")] = 115,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each contestant.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Time of a run's rounds over the same training in one plain loop; time to the first step.

    Runs on warm Ray (started here if none runs) and the loop take turns. The loop is one process
    with as many threads as there are cores, without server, ledger or messages. ViT-Tiny at 64
    pixels on phantoms, all layers, with DP.
    """
    check_out("--json", json_file)
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as name, _warm_ray():
        bench = _Bench(
            folder=Path(name),
            words=(
                *("experiment=demo", *_MODEL, "privacy.images_per_patient=1"),
                *(f"federation.num_sites={sites}", f"federation.rounds={rounds}"),
                *(f"federation.steps_per_round={steps}", f"federation.evaluate_every={rounds}"),
                f"data.phantom.num_train_per_site={patients}",
                *(f"data.root={name}/phantoms", f"data.cache_dir={name}/cache"),
            ),
        )
        (bench.folder / "phantoms").mkdir()
        typer.echo("first run: makes phantoms, warms up ...")
        bench.run()
        turns = [_turn(bench, number, repeats) for number in range(repeats)]
    found: dict[str, Any] = _figures(turns) | {
        "rounds": rounds,
        "sites": sites,
        "steps_per_round": steps,
        "patients_per_site": patients,
        "repeats": repeats,
    }
    typer.echo(
        f"overhead_ratio {found['overhead_ratio']:.2f} (turns: {_listed(found['ratios'])})\n"
        f"round: {found['round_seconds']:.2f} s, plain loop {found['plain_round_seconds']:.2f} s\n"
        f"command to first training step: {found['start_seconds']:.1f} s"
    )
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timed:
    """When things happened in a run, in seconds after its command began.

    Attributes:
        first: answer of a hospital in each round.
        last: answer of a hospital in each round.
    """

    first: list[float]
    last: list[float]

    @property
    def round_seconds(self) -> list[float]:
        """From one round's last answer to the next one's."""
        return [b - a for a, b in zip(self.last, self.last[1:], strict=False)]

    @property
    def start_seconds(self) -> float:
        """To the first training step: the first answer, less what such an answer takes later."""
        later = [b - a for a, b in zip(self.last, self.first[1:], strict=False)]
        return self.first[0] - statistics.median(later)


@dataclass(kw_only=True, slots=True)
class _Bench:
    """Runs with the same settings."""

    folder: Path
    words: tuple[str, ...]
    count: int = field(default=0, init=False)

    def run(self) -> _Timed:
        """One simulation on warm Ray."""
        import configs
        from simulations.simulate import simulate

        began = time.monotonic()
        answers: dict[int, list[float]] = {}

        def listen(event: dict[str, Any]) -> None:
            if event["event"] == "site":
                answers.setdefault(event["round"], []).append(time.monotonic() - began)

        words = [*self.words, "simulation.ray_address=auto", f"run_dir={self._next()}"]
        code = simulate(configs.load(words), listen)
        if code:
            raise RunFailed(f"a run of the benchmark ended with exit code {code}")
        ordered = [answers[number] for number in sorted(answers)]
        return _Timed(first=[min(a) for a in ordered], last=[max(a) for a in ordered])

    def loop(self) -> list[float]:
        """Seconds of each round of the plain loop."""
        import configs
        from simulations.run_dir import RunDir

        run_dir = RunDir(path=self._next())
        run_dir.work.mkdir(parents=True)
        run_dir.run_id.write_text("plain")
        run_dir.config.write_text(configs.dump_yaml(configs.load(self.words)))
        command = [sys.executable, "-P", "-m", "simulations.bench.plain_loop", str(run_dir.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunFailed(f"the plain loop ended early: {done.stderr.strip()[-500:]}")
        return json.loads(done.stdout.splitlines()[-1])["seconds"]

    def _next(self) -> Path:
        self.count += 1
        return self.folder / f"run-{self.count}"


def _turn(bench: _Bench, number: int, repeats: int) -> tuple[_Timed, list[float]]:
    typer.echo(f"turn {number + 1}/{repeats}: simulation ...")
    timed = bench.run()
    typer.echo(f"turn {number + 1}/{repeats}: plain loop ...")
    return timed, bench.loop()


def _figures(turns: Sequence[tuple[_Timed, list[float]]]) -> dict[str, Any]:
    """Means of rounds but the first, in which both open what stays open."""
    simulated = [statistics.mean(timed.round_seconds) for timed, _ in turns]
    plain = [statistics.mean(loop[1:]) for _, loop in turns]
    ratios = [a / b for a, b in zip(simulated, plain, strict=True)]
    return {
        "overhead_ratio": statistics.median(ratios),
        "ratios": ratios,
        "round_seconds": statistics.median(simulated),
        "plain_round_seconds": statistics.median(plain),
        "start_seconds": statistics.median(timed.start_seconds for timed, _ in turns),
    }


@contextmanager
def _warm_ray() -> Iterator[None]:
    """Ray that runs; ended afterwards if it was started for this."""
    from common.config import SimulationConfig
    from simulations.hosting.warm import warm_up

    if ray_here.address_here() is not None:
        yield
        return
    num_cpus = os.cpu_count() or 1
    address = ray_here.start(num_cpus=num_cpus, num_gpus=0)
    try:
        warm_up(address, SimulationConfig(ray_address=address), num_sites=num_cpus)
        yield
    finally:
        ray_here.stop()


def _listed(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)
