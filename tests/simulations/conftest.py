"""A simulation in this process: Flower's apps and the real sites, without Ray between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity

import configs
from common.config import Job
from server.rounds import Outcome
from simulations.classification import classify
from simulations.in_process import federate as in_process_federate
from simulations.run_dir import RunDir
from simulations.scene import Scene
from simulations.simulate import of_synthesis
from simulations.sites import prepare
from simulations.synthesis import synthesize

Simulate = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Runs a job in a folder with overrides; returns its events, the result in the last one."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def simulate(
        path: Path,
        *overrides: str,
        job: Job = Job.classify,
        federate: Callable[..., list[Outcome]] = in_process_federate,
        observe: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> list[dict[str, Any]]:
        primary = "synthesize" if job is Job.synthesize else "config"
        config = configs.load([*overrides, f"run_dir={path}"], primary=primary)
        run_dir = RunDir(path=path)
        run_dir.work.mkdir(parents=True)
        if not run_dir.run_id.exists():
            run_dir.run_id.write_text(path.name)
        events: list[dict[str, Any]] = []

        def both(event: dict[str, Any]) -> None:
            events.append(event)
            observe(event)

        scene = Scene(
            config=of_synthesis(config) if job is Job.synthesize else config,
            run_dir=run_dir,
            hospitals=prepare(config, run_dir),
            observe=both,
            federate=federate,
        )
        (synthesize if job is Job.synthesize else classify)(scene)
        return events

    return simulate
