"""``fedward bench deployment``: what a round costs beside its training when hospitals are apart."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import RunFailed, UsageError
from common.files import check_out, write_atomically
from simulations.loopback.timeline import PARTS, Heard

SCHEMA = "fedward.bench-deployment/1"
TARGET_SECONDS = 6.0
_NOISE, _RATE, _DELTA = 4.0, 0.5, 1e-3
_POLICY = f"""\
schema: fedward.policy/1
studies:
  phantom: {{epsilon: 1000.0, delta: {_DELTA}, accountant: rdp}}
smallest_noise_multiplier: {_NOISE}
smallest_expected_batch: 1
largest_sampling_rate: {_RATE}
largest_steps: 1000
models: ["vit_*"]
"""


def deployment(
    rounds: Annotated[int, typer.Option(min=4, help="Rounds of each run.")] = 8,
    sites: Annotated[int, typer.Option(min=1, max=16, help="Hospitals.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Private steps of a hospital in a round.")] = 2,
    patients: Annotated[int, typer.Option(min=8, help="Training patients of a hospital.")] = 24,
    finetune: Annotated[
        str, typer.Option(help="Layers of ViT-Tiny that travel: all (22 MB), or head.")
    ] = "head",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Seconds of a round beside its training: hospitals as real processes, and simulated.

    A server (its own certificate authority, nginx where it is installed, SuperLink) and hospitals
    (agent, gate, SuperNode, runner) on loopback ports of this machine, all of this user; then the
    same recipe by fedward simulate. ViT-Tiny at 64 pixels on phantoms. Everything is ended and
    removed at the end, also after Ctrl-C.
    """
    check_out("--json", json_file)
    if finetune not in {"all", "head"}:
        raise UsageError(f"--finetune={finetune}: must be all or head")
    recipe = Recipe(rounds=rounds, sites=sites, steps=steps, patients=patients, finetune=finetune)
    deployed, simulated = _both(recipe)
    found = {
        "schema": SCHEMA,
        **recipe.to_dict(),
        "cores": os.cpu_count() or 1,
        "target_seconds": TARGET_SECONDS,
        "deployment": deployed,
        "simulation": simulated,
    }
    typer.echo("\n".join(_lines(deployed, simulated)))
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What both run."""

    rounds: int
    sites: int
    steps: int
    patients: int
    finetune: str

    @property
    def agreed(self) -> tuple[str, ...]:
        """The study and the model."""
        return (
            *("model=vit_tiny", f"finetune={self.finetune}"),
            *("data.image_size=64", "data.phantom.size=64"),
            f"data.phantom.num_train_per_site={self.patients}",
            *("data.phantom.num_val=8", "data.phantom.num_test=8"),
            f"federation.num_sites={self.sites}",
        )

    @property
    def run(self) -> tuple[str, ...]:
        """The rounds."""
        return (
            *(f"federation.rounds={self.rounds}", f"federation.evaluate_every={self.rounds}"),
            *(f"federation.steps_per_round={self.steps}", f"privacy.noise_multiplier={_NOISE}"),
            *(f"privacy.sampling_rate={_RATE}", f"privacy.delta={_DELTA}"),
            *("privacy.accountant=rdp", "privacy.images_per_patient=1"),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rounds": self.rounds,
            "sites": self.sites,
            "steps_per_round": self.steps,
            "patients_per_site": self.patients,
            "finetune": self.finetune,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timed:
    """Seconds of one round, and how long somebody trained in it."""

    seconds: float
    training: float


def _both(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The deployment's figures and the simulation's; nothing is left behind."""
    from simulations.hosting.child import EXIT_FAILED, EXIT_INTERRUPTED, stoppable

    try:
        # a short path: a Unix socket's has at most 107 characters
        with stoppable(), tempfile.TemporaryDirectory(prefix="fw-") as name:
            deployed = _deployed(Path(name), recipe)
            typer.echo("the same in simulation ...")
            return deployed, _simulated(Path(name), recipe)
    except KeyboardInterrupt:
        typer.echo("interrupted; everything that was started is ended", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except RunFailed as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None


def _deployed(folder: Path, recipe: Recipe) -> dict[str, Any]:
    from simulations.loopback import trial
    from simulations.loopback.consortium import Agreed

    if not trial.has_nginx():
        typer.echo("nginx is not installed: hospitals dial the SuperLink itself")
    agreed = Agreed(settings=recipe.agreed, run=recipe.run, policy=_POLICY)
    root = folder / "d"
    root.mkdir()
    held = trial.hold(root, agreed, sites=recipe.sites, say=typer.echo)
    counted = range(1, recipe.rounds - 1)
    timed = [_Timed(seconds=held.rounds[i].seconds, training=held.training[i]) for i in counted]
    found = _of_rounds(timed) | {
        "nginx": held.asked is not None,
        "start_seconds": held.start_seconds,
        "parts": {name: statistics.mean(held.parts[i][name] for i in counted) for name in PARTS},
        "code_check_seconds": held.check_seconds,
        "handshake_seconds": held.handshake_seconds,
    }
    if held.asked is not None:
        later = recipe.rounds - 1
        found["handshakes_per_round"] = held.asked.handshakes / later
        found["requests_per_round"] = held.asked.requests / later
        found["bytes_per_round"] = held.asked.bytes / later
    return found


def _simulated(folder: Path, recipe: Recipe) -> dict[str, Any]:
    import configs
    from simulations.hosting.child import EXIT_INTERRUPTED
    from simulations.loopback import timeline
    from simulations.loopback.trial import trained_in
    from simulations.run_dir import RunDir
    from simulations.simulate import simulate

    events: list[Heard] = []

    def listen(event: dict[str, Any]) -> None:
        heard = Heard(time=time.time(), source="events", text=json.dumps(event))
        events.append(heard)

    run_dir = RunDir(path=folder / "s")
    words = [*recipe.agreed, *recipe.run, f"run_dir={run_dir.path}"]
    code = simulate(configs.load(words), listen)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RunFailed(f"the simulation ended with exit code {code}: {_end_of(run_dir.log)}")
    names = [f"hospital-{number + 1}" for number in range(recipe.sites)]
    trained = [trained_in(name, run_dir.ledger(name)) for name in names]
    rounds = timeline.rounds(events)
    return _of_rounds(
        [
            _Timed(
                seconds=one.seconds,
                training=timeline.covered(site[one.number] for site in trained),
            )
            for one in rounds[1:-1]
        ]
    )


def _of_rounds(timed: Sequence[_Timed]) -> dict[str, Any]:
    """Means over all rounds but the first, which warms up, and the last, which evaluates."""
    beside = [one.seconds - one.training for one in timed]
    return {
        "round_seconds": statistics.mean(one.seconds for one in timed),
        "training_seconds": statistics.mean(one.training for one in timed),
        "beside_training_seconds": statistics.mean(beside),
        "beside_training_each": beside,
    }


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:] if log.is_file() else "no log"


def _lines(deployed: Mapping[str, Any], simulated: Mapping[str, Any]) -> list[str]:
    found = [
        _line("deployment", deployed) + f" (target {TARGET_SECONDS:g} s)",
        _line("simulation", simulated),
        "the deployment's round, on the way of the hospital that answered last:",
        *(f"  {deployed['parts'][name]:6.2f} s  {name}: {text}" for name, text in PARTS.items()),
        f"of that the gate's check of the code: {deployed['code_check_seconds']:.4f} s",
    ]
    if deployed["nginx"]:
        tls = deployed["handshakes_per_round"] * deployed["handshake_seconds"]
        found.append(
            f"of that TLS handshakes, all hospitals: {tls:.4f} s "
            f"({deployed['handshakes_per_round']:.1f} of {deployed['handshake_seconds']:.4f} s); "
            f"{deployed['requests_per_round']:.0f} requests and "
            f"{deployed['bytes_per_round'] / 1e6:.1f} MB through nginx in a round"
        )
    return found


def _line(name: str, found: Mapping[str, Any]) -> str:
    return (
        f"{name}: {found['round_seconds']:.2f} s a round, {found['training_seconds']:.2f} s of it "
        f"training, {found['beside_training_seconds']:.2f} s beside it"
    )
