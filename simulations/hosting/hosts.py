"""The Ray actors that hospitals of a run live in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import ray

from common.config import ClientResources, SimulationConfig
from common.errors import RunFailed
from server.rounds import Outcome, Start, run
from simulations.code_version import code_version
from simulations.hosting.client_memory import gpu_share, process_bytes
from simulations.hosting.named_actors import end_idle_others
from simulations.hosting.ray_grid import Host, RayGrid
from simulations.sites import SimulatedSites


def train(starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
    """Let the sites train one model after another, each from its start, on the Ray that runs.

    Raises:
        RunFailed: if no process of Ray can be had, or the federation could not finish.
    """
    num_sites, config = len(sites.names), sites.config
    auto = config.simulation.client_resources is ClientResources.auto
    least = _least_share(sites) if auto else 0.0
    simulation = with_gpus(config.simulation, num_sites=num_sites, least=least)
    sites = replace(sites, config=replace(config, simulation=simulation))
    memory_bytes = process_bytes(sites) if auto else 0
    hosts = open_hosts(simulation, num_sites=num_sites, memory_bytes=memory_bytes)
    outcomes: list[Outcome] = []
    for start in starts:
        grid = RayGrid(hosts, sites)
        outcomes.append(run(grid, start))
        grid.close()
    return outcomes


def with_gpus(
    simulation: SimulationConfig, *, num_sites: int, least: float = 0.0
) -> SimulationConfig:
    """The same with an even share of Ray's GPUs for each process, unless it says how much.

    Args:
        simulation: says what each may use.
        num_sites: of the run.
        least: share that a process needs.

    Raises:
        RunFailed: if a process needs more than one GPU.
    """
    if simulation.gpus_per_site is not None:
        return simulation
    on_cpu = replace(simulation, gpus_per_site=0.0)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    processes = min(num_sites, fitting(on_cpu))
    if not gpus or not processes:
        return on_cpu
    if least > 1:
        raise RunFailed(
            f"a training step needs {least:.2g} times the memory of a GPU; set training.memory_gb "
            "or physical_batch, or simulation.gpus_per_site=0"
        )
    share = max(1 / math.ceil(processes / gpus), least)
    return replace(simulation, gpus_per_site=math.floor(share * 1e4) / 1e4)  # as Ray counts


def _least_share(sites: SimulatedSites) -> float:
    """What a process needs of a GPU like the first one here; 0 if there is none here."""
    import torch

    if sites.config.simulation.gpus_per_site is not None or not torch.cuda.is_available():
        return 0.0
    return gpu_share(sites, torch.cuda.get_device_properties(0).total_memory)


def open_hosts(simulation: SimulationConfig, *, num_sites: int, memory_bytes: int = 0) -> list[Any]:
    """Processes for hospitals, as many as fit and are of use.

    On a Ray that runs already they stay after the run, named after what they were made for and
    the code that they imported, and the next run finds them.

    Args:
        simulation: says what each may use, of GPUs as well.
        num_sites: of the run.
        memory_bytes: that each takes; 0 if memory is no matter.

    Raises:
        RunFailed: if no node of Ray has that much.
    """
    gpus = simulation.gpus_per_site or 0.0
    count = min(num_sites, fitting(simulation, memory_bytes))
    if count == 0:
        memory = f" and {memory_bytes / 1e9:.2g} GB of memory" if memory_bytes else ""
        raise RunFailed(
            f"simulation.cpus_per_site={simulation.cpus_per_site:g} "
            f"simulation.gpus_per_site={gpus:g}{memory}: no node of Ray has "
            f"that much{'; set training.memory_gb or physical_batch' if memory_bytes else ''}"
        )
    options: dict[str, Any] = {
        "num_cpus": simulation.cpus_per_site,
        "num_gpus": gpus,
        "max_restarts": -1,
        **({"memory": memory_bytes} if memory_bytes else {}),
    }
    named: list[dict[str, Any]] = [{}] * count
    if simulation.ray_address is not None:
        shape = f"{simulation.cpus_per_site:g}-{gpus:g}-{memory_bytes}"
        stem = f"host-{shape}-{code_version()}"
        end_idle_others("host-", but=stem)
        named = [
            {"name": f"{stem}-{number}", "lifetime": "detached", "get_if_exists": True}
            for number in range(count)
        ]
    actor: Any = ray.remote(Host)
    return [actor.options(**options, **name).remote() for name in named]


def fitting(simulation: SimulationConfig, memory_bytes: int = 0) -> int:
    """How many such processes Ray's nodes hold; see `open_hosts`."""
    total = 0
    for node in cast("list[dict[str, Any]]", ray.nodes()):
        resources = node["Resources"] if node["Alive"] else {}
        fit = int(resources.get("CPU", 0) / simulation.cpus_per_site)
        if simulation.gpus_per_site:
            fit = min(fit, int(resources.get("GPU", 0) / simulation.gpus_per_site))
        if memory_bytes:
            fit = min(fit, int(resources.get("memory", 0) / memory_bytes))
        total += fit
    return total
