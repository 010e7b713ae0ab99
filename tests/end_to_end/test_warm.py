from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

FEDWARD = Path(sys.executable).with_name("fedward")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A Ray beside whatever else runs; its sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="fw-")
    monkeypatch.setenv("TMPDIR", folder)
    stray = tmp_path / "client"
    stray.mkdir()
    (stray / "__init__.py").write_text("raise RuntimeError('a stray package was imported')")
    monkeypatch.chdir(tmp_path)
    started = command("start", "--cpus", "2")
    assert started.returncode == 0, started.stderr
    yield folder
    command("stop")
    shutil.rmtree(folder)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FEDWARD, "ray", *words], capture_output=True, text=True, timeout=900, check=False
    )


def rays(folder: str) -> list[psutil.Process]:
    """Processes that have to do with the Ray in ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            if folder in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_runs_on_a_ray_that_stays(ray, first_run, small, simulate, start_run, tmp_path: Path):
    """Same weights; a killed command ends its run, which goes on later; nothing stays behind."""
    assert command("status").returncode == 0
    again = command("start")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    warm = (*small, "simulation.ray_address=auto")
    done = simulate(*warm, run_dir=tmp_path / "first", cwd=tmp_path)
    assert done.code == 0, done.err
    expected = first_run.result["final"]["weights_sha256"]
    assert done.result["final"]["weights_sha256"] == expected

    running = start_run(*warm, f"run_dir={tmp_path / 'killed'}", run_dir=tmp_path / "killed")
    running.wait_for("round 1/3")
    running.process.kill()
    running.process.wait()
    time.sleep(10)
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = subprocess.run(
        [FEDWARD, "simulate", f"resume={tmp_path / 'killed'}"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f'"weights_sha256": "{expected}"' in (tmp_path / "killed" / "result.json").read_text()

    assert rays(ray)
    assert command("stop").returncode == 0
    assert rays(ray) == []
    assert command("status").returncode == 1


def test_no_ray_there_is_one_line(tmp_path: Path, small, simulate, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = simulate(*small, "simulation.ray_address=127.0.0.1:1", run_dir=tmp_path / "run")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "fedward ray start" in done.err
    assert list(tmp_path.iterdir()) == []
