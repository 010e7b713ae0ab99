"""Killed at any moment, the ledger never counts less than what was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("kills", [40, pytest.param(1000, marks=pytest.mark.long)])
def test_a_kill_loses_nothing_that_was_trained(kills: int, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(HERE / "crash_runner.py"), str(tmp_path), str(kills), str(seed)],
        check=False,
        capture_output=True,
        text=True,
        cwd=HERE.parents[2],
        env=environment,
    )
    assert run.returncode == 0, f"seed {seed}: {run.stderr}"
    found = json.loads(run.stdout)
    print(found)
    assert found["kills"] == kills
    assert found["trained"] > kills, f"seed {seed}: hardly anything was going on"
    assert found["full"] >= 1, f"seed {seed}: no cap was reached"
