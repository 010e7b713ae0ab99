"""Real runs of the command ``fedward`` in child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
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
        timeout=1800,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    log = run_dir / "log.txt"
    if done.returncode not in (0, 2, 3, 4) and log.exists():
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
    """A small private run that several tests look at, beside packages with names of ours."""
    folder = tmp_path_factory.mktemp("first")
    for name in ("client", "common", "server", "simulations", "configs"):
        stray = folder / name
        stray.mkdir()
        (stray / "__init__.py").write_text("raise RuntimeError('a stray package was imported')")
    return _simulate(*SMALL, run_dir=folder / "run")


class Running:
    """A run in the background, whose processes are known by a mark in their environment."""

    def __init__(self, *arguments: str, run_dir: Path, command: str = "simulate") -> None:
        self.mark = uuid.uuid4().hex
        self.log = run_dir.parent / f"{self.mark}.out"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [FEDWARD, command, *arguments],
                cwd=run_dir.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"FEDWARD_TEST_MARK": self.mark},
                start_new_session=True,
            )

    def wait_for(self, text: str, seconds: float = 1800) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"never said {text!r}: {self.log.read_text()}")
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Living processes that carry the mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FEDWARD_TEST_MARK") == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def gone_within(self, seconds: float) -> list[psutil.Process]:
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


@pytest.fixture
def start_run() -> Callable[..., Running]:
    """Starts a run in the background."""
    return Running
