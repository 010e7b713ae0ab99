"""``fedward calibrate``: from a target epsilon to the noise it needs."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UsageError

if TYPE_CHECKING:
    from common.privacy.events import Event


def calibrate(
    epsilon: Annotated[float, typer.Option(help="Target over all steps.")],
    delta: Annotated[float, typer.Option(help="At this delta.")],
    sampling_rate: Annotated[float, typer.Option(help="Chance of a patient to be in a step.")],
    steps: Annotated[int, typer.Option(help="All steps: rounds x steps per round.")],
    accountant: Annotated[str, typer.Option(help="pld or rdp.")] = "pld",
    prv: Annotated[bool, typer.Option("--prv", help="Read it by PRV (Opacus) too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Smallest noise multiplier for a target epsilon, and how each accountant reads it."""
    from common.privacy import accountants, calibration
    from common.privacy.events import PoissonGaussianSteps

    try:
        noise = calibration.calibrate(
            epsilon=epsilon,
            delta=delta,
            sampling_rate=sampling_rate,
            steps=steps,
            accountant=accountants.build(accountant),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    event = PoissonGaussianSteps(sampling_rate=sampling_rate, noise_multiplier=noise, steps=steps)
    readings = {name: accountants.build(name).epsilon([event], delta) for name in accountants.NAMES}
    if prv:
        readings["prv"] = _read_by_prv(event, delta)
    if as_json:
        fields = {
            "noise_multiplier": noise,
            "accountant": accountant,
            "adjacency": accountants.ADJACENCY,
            "epsilon_target": epsilon,
            "delta": delta,
            "sampling_rate": sampling_rate,
            "steps": steps,
            "epsilon": {n: e if math.isfinite(e) else None for n, e in readings.items()},
        }
        typer.echo(json.dumps(fields, indent=2, allow_nan=False))
        return
    typer.echo(
        f"noise multiplier {noise:g} ({steps} steps at rate {sampling_rate:g}, delta {delta:g}, "
        f"{accountants.ADJACENCY} adjacency, calibrated by {accountant})"
    )
    for name, reading in readings.items():
        # Rounded up: an epsilon is never shown smaller than it is.
        shown = math.ceil(reading * 1e4) / 1e4 if math.isfinite(reading) else reading
        typer.echo(f"{name}: epsilon {shown:.4f}")


def _read_by_prv(event: Event, delta: float) -> float:
    from client.prv import PrvAccountant

    try:
        return PrvAccountant().epsilon([event], delta)
    except ValueError as error:
        raise UsageError(str(error)) from error
