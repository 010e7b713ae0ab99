"""Hospitals in Ray actors train a model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.config import ClientResources
from server.rounds import Outcome, Start, run
from simulations.hosting.client_memory import gpu_share, process_bytes
from simulations.hosting.hosts import open_hosts, with_gpus
from simulations.hosting.ray_grid import RayGrid
from simulations.sites import SimulatedSites


def train(
    starts: Sequence[Start], sites: SimulatedSites, ahead: Sequence[Any] = ()
) -> list[Outcome]:
    """Let the sites train one model after another, each from its start, on the Ray that runs.

    Args:
        starts: of the models.
        sites: that train.
        ahead: processes that `open_ahead` has opened, if it has any.

    Raises:
        RunFailed: if no process of Ray can be had, or the federation could not finish.
    """
    num_sites, config = len(sites.names), sites.config
    auto = config.simulation.client_resources is ClientResources.auto
    least = _least_share(sites) if auto else 0.0
    simulation = with_gpus(config.simulation, num_sites=num_sites, least=least)
    sites = replace(sites, config=replace(config, simulation=simulation))
    memory_bytes = process_bytes(sites) if auto else 0
    hosts = ahead[:num_sites] or open_hosts(
        simulation, num_sites=num_sites, memory_bytes=memory_bytes
    )
    outcomes: list[Outcome] = []
    for start in starts:
        grid = RayGrid(hosts, sites)
        outcomes.append(run(grid, start))
        grid.close()
    return outcomes


def _least_share(sites: SimulatedSites) -> float:
    """What a process needs of a GPU like the first one here; 0 if there is none here."""
    import torch

    if sites.config.simulation.gpus_per_site is not None or not torch.cuda.is_available():
        return 0.0
    return gpu_share(sites, torch.cuda.get_device_properties(0).total_memory)
