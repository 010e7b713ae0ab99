"""Real runs of the command ``fedward`` in child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FEDWARD = Path(sys.executable).with_name("fedward")

# A model and phantoms so small that a run is mostly start-up.
SMALL = (
    "model.patch_size=32",
    "data.phantom.num_train_per_site=24",
    "data.phantom.num_val=12",
    "data.phantom.num_test=24",
    "federation.rounds=3",
    "federation.steps_per_round=1",
    "privacy.images_per_patient=1",
)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str
    run_dir: Path

    @property
    def result(self) -> dict[str, Any]:
        """Content of ``result.json``."""
        return json.loads((self.run_dir / "result.json").read_text())


Simulate = Callable[..., Finished]


def _simulate(*arguments: str, run_dir: Path, cwd: Path | None = None) -> Finished:
    done = subprocess.run(
        [FEDWARD, "simulate", *arguments, f"run_dir={run_dir}"],
        cwd=cwd or run_dir.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    log = run_dir / "log.txt"
    if done.returncode not in (0, 2) and log.exists():
        print(log.read_text()[-6000:])
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr, run_dir=run_dir)


@pytest.fixture(scope="session")
def simulate() -> Simulate:
    return _simulate


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A small private run that several tests look at."""
    return _simulate(*SMALL, run_dir=tmp_path_factory.mktemp("first") / "run")
