"""``fedward bench deployment``, with every process that it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from common.errors import UsageError
from simulations.cli import app
from simulations.loopback.timeline import PARTS

FEDWARD = Path(sys.executable).with_name("fedward")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--finetune", "none"], "--finetune=none: must be all or head"),
        (["--json", "absent/figures.json"], "no such folder"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_starts(
    words: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["bench", "deployment", *words])
    assert isinstance(done.exception, UsageError)
    assert complaint in str(done.exception)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files; a Unix socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="fb-") as name:
        yield Path(name)


def inside(folder: Path) -> list[psutil.Process]:
    """Living processes that work in a folder below this one."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.long
def test_a_small_bench_adds_up_and_leaves_nothing(tmp_path: Path, short: Path) -> None:
    figures = tmp_path / "figures.json"
    few = ("--rounds", "4", "--patients", "12", "--steps", "1", "--finetune", "head")
    done = subprocess.run(
        [FEDWARD, "bench", "deployment", *few, "--json", str(figures)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=os.environ | {"TMPDIR": str(short)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    deployed, simulated = found["deployment"], found["simulation"]
    assert list(deployed["parts"]) == list(PARTS)
    assert sum(deployed["parts"].values()) == pytest.approx(deployed["round_seconds"])
    for one in (deployed, simulated):
        assert len(one["beside_training_each"]) == 2
        assert one["training_seconds"] > 0
        beside = one["round_seconds"] - one["training_seconds"]
        assert one["beside_training_seconds"] == pytest.approx(beside)
    assert inside(short) == []
    assert list(short.iterdir()) == []


@pytest.mark.long
def test_everything_ends_with_an_interrupted_bench(short: Path) -> None:
    bench = subprocess.Popen(
        [FEDWARD, "bench", "deployment", "--finetune", "head"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(short)},
        start_new_session=True,
    )
    assert bench.stdout is not None
    for line in bench.stdout:
        if line.startswith("rounds"):
            break
    assert len(inside(short)) > 6, "server and hospitals run"
    bench.send_signal(signal.SIGINT)
    assert bench.wait(timeout=120) == 130
    bench.stdout.close()
    deadline = time.monotonic() + 30
    while (left := inside(short)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert list(short.iterdir()) == []
