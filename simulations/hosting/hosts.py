"""The Ray actors that hospitals of a run live in, and what each may use.

Imported in a thread beside others: it imports little.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import ray

from common.config import ClientResources, Config, SimulationConfig
from common.errors import RunFailed
from simulations.code_version import code_version
from simulations.hosting.host import Host
from simulations.hosting.named_actors import end_idle_others


def open_ahead(config: Config) -> list[Any]:
    """Those of a run on a Ray of its own, to import while its study is read.

    None where what each may use is known only then.

    Raises:
        RunFailed: if no node of Ray has that much.
    """
    simulation, num_sites = config.simulation, config.federation.num_sites
    if simulation.client_resources is ClientResources.auto:
        return []
    shared = with_gpus(simulation, num_sites=num_sites)
    if simulation.gpus_per_site is None and shared.gpus_per_site:
        return []  # shares are of those that train, and a study may have hospitals of its own
    return open_hosts(shared, num_sites=num_sites)


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
