"""What is opened while a study is read, and what waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from common.config import ClientResources, Config, SimulationConfig
from common.errors import RunFailed
from simulations.hosting import hosts
from simulations.hosting.ray_start import RayStart


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Ray with two CPUs and two GPUs, and what is asked of `open_hosts`."""
    found: dict[str, Any] = {}

    def take(simulation: SimulationConfig, *, num_sites: int) -> list[str]:
        found.update(simulation=simulation, num_sites=num_sites)
        return ["a process"]

    resources = {"CPU": 2.0, "GPU": 2.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])
    monkeypatch.setattr(hosts, "open_hosts", take)
    return found


def test_processes_whose_shape_is_known_are_opened(opened: dict[str, Any]) -> None:
    simulation = SimulationConfig(gpus_per_site=0.0)
    assert hosts.open_ahead(Config(simulation=simulation)) == ["a process"]
    assert opened == {"simulation": simulation, "num_sites": Config().federation.num_sites}


@pytest.mark.parametrize(
    "simulation",
    [
        SimulationConfig(client_resources=ClientResources.auto, gpus_per_site=0.0),
        SimulationConfig(gpus_per_site=None),
    ],
    ids=["memory", "even shares"],
)
def test_a_shape_that_the_study_decides_is_waited_for(
    simulation: SimulationConfig, opened: dict[str, Any]
) -> None:
    assert hosts.open_ahead(Config(simulation=simulation)) == []
    assert opened == {}


def test_who_waits_gets_what_was_opened_or_why_it_was_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray, "init", lambda **options: None)
    assert RayStart(1, tmp_path, lambda: ["a process"]).wait() == ["a process"]

    def fails() -> list[Any]:
        raise RunFailed("no node of Ray has that much")

    with pytest.raises(RunFailed, match="no node of Ray has that much"):
        RayStart(1, tmp_path, fails).wait()


def test_ray_is_started_again_if_it_took_too_long_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problems = ["timed out during startup", "timed out during startup", "", "no space left"]

    def init(**options: Any) -> None:
        if problem := problems.pop(0):
            raise RuntimeError(problem)

    monkeypatch.setattr(ray, "init", init)
    assert list(RayStart(1, tmp_path).wait()) == []
    assert problems == ["no space left"]
    with pytest.raises(RunFailed, match="Ray did not start: no space left"):
        RayStart(1, tmp_path).wait()
