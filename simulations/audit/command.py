"""``fedward audit``: measured privacy beside claimed privacy."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import UsageError
from common.files import check_out, write_atomically
from simulations.audit import figure_command, inversion_command, run_command
from simulations.audit.end import EXIT_INTERRUPTED, EXIT_PASSED, orderly_end

if TYPE_CHECKING:
    from client.audit.audit import Audit, Effort
    from client.audit.game import Subject
    from common.config import Config

_NUM_CLASSES = 2

app = typer.Typer(
    no_args_is_help=True, help="Attack the training, and compare what that proves with the claim."
)


app.command(
    epilog=(
        "Exit codes: 0 no claim is refuted; 1 one is; 2 bad input, or no data; 130 interrupted."
    ),
)(run_command.run)
app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Exit codes: 0 the page was written; 2 bad input; 130 interrupted.",
)(inversion_command.inversion)
app.command(epilog="Exit codes: 0 the figure was written; 2 bad input.")(figure_command.figure)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog=(
        "Exit codes: 0 the lower bound is below the claim; 1 it is above: the claim is wrong; "
        "2 bad input; 130 interrupted."
    ),
)
def engine(
    context: typer.Context,
    canaries: Annotated[int, typer.Option(min=20, help="In each run of many.")] = 1000,
    runs: Annotated[int, typer.Option(min=2, help="Runs with many canaries.")] = 4,
    lone_runs: Annotated[int, typer.Option(min=8, help="Runs with one canary or none.")] = 400,
    system_noise: Annotated[
        bool,
        typer.Option(
            help="Draw as a hospital does, from the system's entropy: no two audits alike."
        ),
    ] = False,
    confidence: Annotated[float, typer.Option(help="Of the lower bound.")] = 0.95,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """A lower bound of epsilon of the configured training, by attacks with made-up patients.

    The recipe comes from the settings of fedward simulate: privacy.epsilon=4 model=vit_tiny
    finetune=head federation.rounds=10 ... No patient's data is used.
    """
    config = _asked(context.args)
    if not 0.5 <= confidence < 1:
        raise UsageError(f"--confidence={confidence:g}: must be at least 0.5 and below 1")
    check_out("--json", json_file)
    began, effort = time.monotonic(), _effort(canaries, runs, lone_runs)
    try:
        with orderly_end():
            subject = _subject(config, effort)
            found = _audit(config, subject, effort, confidence, system_noise=system_noise)
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing is left behind.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    result = _result(config, subject, effort, found) | {
        "noise": "system" if system_noise else "simulated",
        "seconds": time.monotonic() - began,
    }
    for line in _lines(result):
        typer.echo(line)
    if json_file is not None:
        try:
            write_atomically(json_file, json.dumps(result, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise UsageError(f"--json={json_file}: {error.strerror}") from error
    if found.passes_claim:
        raise typer.Exit(EXIT_PASSED)


def _asked(arguments: list[str]) -> Config:
    """The configuration, if there is something to audit in it.

    Raises:
        UsageError: if there is not.
    """
    import configs
    from common.config import AugmentMode, EngineName

    for word in arguments:
        if word.startswith("-"):
            raise UsageError(f"{word}: no such option; see fedward audit engine --help")
    config = configs.load(arguments, primary="audit")
    if not config.privacy.private:
        raise UsageError("privacy=none: nothing is claimed, so there is nothing to audit")
    if config.privacy.engine is not EngineName.bookkeeping:
        raise UsageError(
            f"privacy.engine={config.privacy.engine.value}: canaries have a loss of their own, "
            "which needs privacy.engine=bookkeeping"
        )
    if config.augment.mode is not AugmentMode.none:
        raise UsageError(
            f"augment.mode={config.augment.mode.value}: the audit is of patients alone; use "
            "augment=none"
        )
    return config


def _effort(canaries: int, runs: int, lone_runs: int) -> Effort:
    from client.audit.audit import Effort

    return Effort(num_canaries=canaries, num_runs=runs, num_lone_runs=lone_runs)


def _subject(config: Config, effort: Effort) -> Subject:
    """What is audited: the recipe, without what is added to gradients after their noise."""
    from dataclasses import replace

    from client.audit.game import Subject
    from common.config import Personal, StudyKind
    from server.recipe import plan
    from server.schedule import Schedule
    from simulations.sites import shared_model

    depth = config.data.volume.depth if config.data.kind is StudyKind.ct_volumes else None
    recipe = plan(config, num_patients=effort.num_canaries + effort.num_ordinary)
    size = config.data.image_size
    return Subject(
        recipe=replace(recipe, proximal_mu=0.0, controlled=False, personal=Personal.none.value),
        rounds=Schedule.of(config).most_rounds,
        model=shared_model(config, _NUM_CLASSES, depth),
        num_classes=_NUM_CLASSES,
        image_shape=(1, size, size) if depth is None else (1, depth, size, size),
    )


def _audit(
    config: Config, subject: Subject, effort: Effort, confidence: float, *, system_noise: bool
) -> Audit:
    from client.audit.audit import audit
    from client.audit.system import System
    from common.seeds import SystemSeeds
    from simulations.progress_bar import ProgressBar

    system = System(seeds=lambda *_: SystemSeeds()) if system_noise else System()
    with ProgressBar() as bar:
        return audit(
            subject,
            effort=effort,
            seed=config.seed,
            system=system,
            confidence=confidence,
            progress=bar,
        )


def _result(config: Config, subject: Subject, effort: Effort, found: Audit) -> dict[str, Any]:
    """The figures, JSON-ready; an infinite epsilon is null."""
    recipe, claim = subject.recipe, found.claim
    return {
        "epsilon_claimed": _finite(found.epsilon_claimed),
        "epsilon_lower_bound": _finite(found.epsilon_lower_bound),
        "confidence": found.confidence,
        "passes_claim": found.passes_claim,
        **{name: claim[name] for name in ("delta", "unit", "accountant", "adjacency")},
        "bounds": [
            {
                "name": bound.name,
                "epsilon": _finite(bound.epsilon),
                "assumes": bound.assumes,
                "score": bound.score,
                "mu": bound.mu,
                "epsilon_gaussian": bound.epsilon_gaussian,
            }
            for bound in found.bounds
        ],
        "recipe": {
            "sampling_rate": recipe.sampling_rate,
            "noise_multiplier": recipe.noise_multiplier,
            "rounds": subject.rounds,
            "steps_per_round": recipe.steps,
            "max_grad_norm": recipe.max_grad_norm,
            "images_per_patient": recipe.images_per_patient,
            "clipping": recipe.clipping,
            "engine": recipe.engine,
            "precision": recipe.precision,
            "model": config.model.name,
            "finetune": config.finetune.mode.value,
        },
        "effort": {
            "canaries": effort.num_canaries,
            "runs": effort.num_runs,
            "lone_runs": effort.num_lone_runs,
        },
        "seed": config.seed,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(result: dict[str, Any]) -> Iterator[str]:
    recipe, claim = result["recipe"], _shown(result["epsilon_claimed"], math.ceil)
    yield (
        f"claimed: epsilon {claim} at delta {result['delta']:.1e}, "
        f"{result['unit']} level, {result['accountant'].upper()} accountant, "
        f"{result['adjacency']} adjacency"
    )
    yield (
        f"  {recipe['rounds']} rounds of {recipe['steps_per_round']} steps, sampling rate "
        f"{recipe['sampling_rate']:.3g}, noise multiplier {recipe['noise_multiplier']:.4g}, "
        f"{recipe['model']}"
    )
    yield (
        f"proved: epsilon at least {_shown(result['epsilon_lower_bound'])} "
        f"({100 * result['confidence']:g} % confidence)"
    )
    for bound in result["bounds"]:
        assumes = f"; assumes {bound['assumes']}" if bound["assumes"] else ""
        yield f"  {bound['name']}: {_shown(bound['epsilon'])} (by {bound['score']}{assumes})"
    if result["passes_claim"]:
        yield "THE CLAIM IS WRONG: the training leaks more than its ledger says."
    yield f"{result['seconds']:.0f} s"


def _shown(epsilon: float | None, rounded: Callable[[float], int] = math.floor) -> str:
    """Rounded down as lower bounds are; a claim is never shown smaller than it is."""
    return "infinite" if epsilon is None else f"{rounded(epsilon * 1e3) / 1e3:.3f}"
