"""What simulated hospitals may use of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from common.config.check import require, require_positive


class ClientResources(Enum):
    """What decides how many hospitals train side by side: what is given, or memory as well."""

    given = "given"
    auto = "auto"


@dataclass(kw_only=True)
class SimulationConfig:
    """What each simulated hospital may use of this machine, and where its ledgers live.

    With ``ray_address`` hospitals live on a Ray that runs already: ``auto``, or its host:port.

    With ``client_resources=auto`` only so many train side by side as a node has memory for, by the
    measured memory of one training step.

    With ``gpus_per_site`` each hospital trains on that share of a GPU, with 0 on the CPU; if it is
    not set, hospitals share the GPUs that Ray has evenly, if it has any.

    A process keeps ``open_sites`` hospitals open, which spares them reading anew; of more, those
    that were asked longest ago are closed, and opened again when they are asked.

    With ``ledger_dir`` a hospital's ledgers are in ``ledger_dir/SITE`` and outlive the run, so that
    a later run on the same patients starts with what was spent; without it each run has its own.

    With ``noise_seed`` the hospitals' draws and noise follow from it and not from the run's seed:
    of several runs on the same patients whose results are all told, each needs one of its own.
    """

    cpus_per_site: float = 1.0
    gpus_per_site: float | None = None
    client_resources: ClientResources = ClientResources.given
    open_sites: int = 16
    ledger_dir: Path | None = None
    ray_address: str | None = None
    noise_seed: int | None = None

    def __post_init__(self) -> None:
        require_positive("simulation.cpus_per_site", self.cpus_per_site)
        gpus = self.gpus_per_site
        require(gpus is None or gpus >= 0, "simulation.gpus_per_site", gpus, "at least 0")
        seed = self.noise_seed
        require(seed is None or seed >= 0, "simulation.noise_seed", seed, "at least 0")
        require(self.open_sites >= 1, "simulation.open_sites", self.open_sites, "at least 1")
