"""``fedward ray``: a Ray that outlives commands, so that runs start at once."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from simulations.hosting import ray_here

app = typer.Typer(
    help="A Ray that outlives commands: runs with simulation.ray_address=auto start at once.",
    no_args_is_help=True,
)


@app.command()
def start(
    cpus: Annotated[int, typer.Option(min=1, help="CPUs that it may use.")] = os.cpu_count() or 1,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs that it may use; all that Ray finds, if unset.")
    ] = None,
) -> None:
    """Start Ray on this machine, and processes with everything imported."""
    from common.config import SimulationConfig
    from simulations.hosting.warm import warm_up

    address = ray_here.start(num_cpus=cpus, num_gpus=gpus)
    typer.echo(f"Ray with {cpus} CPUs at {address}; starting processes ...")
    warm_up(address, SimulationConfig(ray_address=address), num_sites=cpus)
    typer.echo("Ready: fedward simulate simulation.ray_address=auto ...")


@app.command()
def status() -> None:
    """Say what runs. Exit code 1 if nothing does."""
    address = ray_here.address_here()
    if address is None:
        typer.echo("no Ray of this user runs here")
        raise typer.Exit(1)
    found = ray_here.processes()
    memory = sum(process.memory_info().rss for process in found) / 1e9
    typer.echo(f"Ray at {address}: {len(found)} processes, {memory:.1f} GB")


@app.command()
def stop() -> None:
    """End what ``start`` started; runs on it fail and can be resumed."""
    typer.echo(f"ended {ray_here.stop()} processes")
