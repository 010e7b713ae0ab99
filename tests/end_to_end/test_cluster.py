"""A Ray of two nodes, of which one is lost while hospitals train on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from simulations.hosting import ray_here
from simulations.hosting.child import QUIET

pytestmark = pytest.mark.long

FEDWARD = Path(sys.executable).with_name("fedward")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Two nodes of one CPU each on this machine."""

    address: str
    second: psutil.Process


def command(*words: str, cwd: Path) -> None:
    done = subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **QUIET},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def nodes() -> dict[int, psutil.Process]:
    return {p.pid: p for p in ray_here.processes() if p.name() == "raylet"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="fw-")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    command(str(FEDWARD), "ray", "start", "--cpus", "1", cwd=tmp_path)
    address = ray_here.address_here()
    assert address is not None
    first = nodes()
    command(
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", f"--address={address}"),
        *("--num-cpus=1", "--num-gpus=0", "--disable-usage-stats"),
        cwd=tmp_path,
    )
    (second,) = [process for pid, process in nodes().items() if pid not in first]
    yield Cluster(address=address, second=second)
    command(str(FEDWARD), "ray", "stop", cwd=tmp_path)
    shutil.rmtree(folder)


def test_a_node_lost_in_mid_round_costs_its_hospitals_the_work_of_that_round(
    cluster: Cluster, first_run: Any, small: tuple[str, ...], start_run: Any, tmp_path: Path
) -> None:
    """They are asked again on the other node: same weights, and nobody is charged twice."""
    run_dir = tmp_path / "run"
    running = start_run(
        *small, f"simulation.ray_address={cluster.address}", f"run_dir={run_dir}", run_dir=run_dir
    )
    running.wait_for("round 1/3")
    cluster.second.kill()
    assert running.process.wait(timeout=1800) == 0, running.log.read_text()
    result = json.loads((run_dir / "result.json").read_text())
    asked = [[site["attempts"] for site in record["sites"].values()] for record in result["rounds"]]
    lost = [number for number, attempts in enumerate(asked, 1) if max(attempts) > 1]
    assert len(lost) == 1, f"{lost}: the lost process was given work again, or none was lost"
    assert lost[0] > 1
    expected = first_run.result
    assert result["final"]["weights_sha256"] == expected["final"]["weights_sha256"]
    for name, site in result["privacy"]["sites"].items():
        assert site["epsilon"] == expected["privacy"]["sites"][name]["epsilon"]
