"""How hospitals share the GPUs that Ray says it has; none is used here."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from common.config import SimulationConfig
from common.errors import RunFailed, UsageError
from simulations.hosting.hosts import fitting, with_gpus
from simulations.sites import device_for


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray with one node of so much."""

    def has(cpus: float, gpus: float) -> None:
        resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])

    return has


@pytest.mark.parametrize(
    ("cpus", "gpus", "sites", "share", "at_once"),
    [
        (2, 0, 5, 0.0, 2),
        (16, 1, 4, 0.25, 4),
        (16, 1, 3, 0.3333, 3),
        (16, 2, 5, 0.3333, 5),
        (16, 8, 5, 1.0, 5),
        (2, 1, 50, 0.5, 2),
    ],
)
def test_an_even_share(
    cpus: float, gpus: float, sites: int, share: float, at_once: int, cluster: Any
) -> None:
    cluster(cpus, gpus)
    found = with_gpus(SimulationConfig(), num_sites=sites)
    assert found.gpus_per_site == share
    assert min(sites, fitting(found)) == at_once


def test_a_share_that_was_asked_for_stays(cluster: Any) -> None:
    cluster(16, 1)
    for share in (0.0, 0.5):
        asked = SimulationConfig(gpus_per_site=share)
        assert with_gpus(asked, num_sites=4, least=0.9) == asked


def test_memory_makes_shares_larger_and_hospitals_fewer(cluster: Any) -> None:
    cluster(16, 1)
    found = with_gpus(SimulationConfig(), num_sites=4, least=0.4)
    assert (found.gpus_per_site, fitting(found)) == (0.4, 2)
    with pytest.raises(RunFailed, match=r"needs 1\.5 times the memory of a GPU"):
        with_gpus(SimulationConfig(), num_sites=4, least=1.5)


def test_a_process_with_a_share_of_no_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not silently on the processor, at a tenth of the speed."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_for(SimulationConfig()).type == "cpu"
    assert device_for(SimulationConfig(gpus_per_site=0)).type == "cpu"
    with pytest.raises(
        UsageError, match=r"simulation\.gpus_per_site=0\.25: torch finds no GPU here"
    ):
        device_for(SimulationConfig(gpus_per_site=0.25))
