"""The Ray actors that hospitals of a run live in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import ray

from common.config import SimulationConfig
from common.errors import RunFailed
from server.rounds import Outcome, Start, run
from simulations.code_version import code_version
from simulations.named_actors import end_idle_others
from simulations.ray_grid import Host, RayGrid
from simulations.sites import SimulatedSites


def train(starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
    """Let the sites train one model after another, each from its start, on the Ray that runs.

    Raises:
        RunFailed: if no process of Ray can be had, or the federation could not finish.
    """
    hosts = open_hosts(sites.config.simulation, num_sites=len(sites.names))
    outcomes: list[Outcome] = []
    for start in starts:
        grid = RayGrid(hosts, sites)
        outcomes.append(run(grid, start))
        grid.close()
    return outcomes


def open_hosts(simulation: SimulationConfig, *, num_sites: int) -> list[Any]:
    """Processes for hospitals, as many as fit and are of use.

    On a Ray that runs already they stay after the run, named after what they were made for and
    the code that they imported, and the next run finds them.
    """
    count = min(num_sites, _that_fit(simulation))
    if count == 0:
        raise RunFailed(
            f"simulation.cpus_per_site={simulation.cpus_per_site:g} "
            f"simulation.gpus_per_site={simulation.gpus_per_site:g}: no node of Ray has that much"
        )
    options: dict[str, Any] = {
        "num_cpus": simulation.cpus_per_site,
        "num_gpus": simulation.gpus_per_site,
        "max_restarts": -1,
    }
    named: list[dict[str, Any]] = [{}] * count
    if simulation.ray_address is not None:
        stem = f"host-{simulation.cpus_per_site:g}-{simulation.gpus_per_site:g}-{code_version()}"
        end_idle_others("host-", but=stem)
        named = [
            {"name": f"{stem}-{number}", "lifetime": "detached", "get_if_exists": True}
            for number in range(count)
        ]
    actor: Any = ray.remote(Host)
    return [actor.options(**options, **name).remote() for name in named]


def _that_fit(simulation: SimulationConfig) -> int:
    """How many such processes the nodes hold."""
    total = 0
    for node in cast("list[dict[str, Any]]", ray.nodes()):
        resources = node["Resources"] if node["Alive"] else {}
        fit = int(resources.get("CPU", 0) / simulation.cpus_per_site)
        if simulation.gpus_per_site:
            fit = min(fit, int(resources.get("GPU", 0) / simulation.gpus_per_site))
        total += fit
    return total
