"""``fedward bench``: what things cost on this machine."""

from __future__ import annotations

import typer

from simulations.bench.data import data
from simulations.bench.deployment import deployment
from simulations.bench.dp import dp
from simulations.bench.gpu import gpu
from simulations.bench.ledger import ledger
from simulations.bench.memory import memory
from simulations.bench.secagg import secagg
from simulations.bench.simulation import simulation

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure times on this machine."
)
for bench in (ledger, data, deployment, dp, gpu, secagg, simulation, memory):
    app.command()(bench)
