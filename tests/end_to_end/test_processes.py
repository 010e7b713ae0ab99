"""What a run leaves of processes and files when it is stopped, killed, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

FEDWARD = Path(sys.executable).with_name("fedward")


class Running:
    """A run in the background, whose processes are known by a mark in their environment."""

    def __init__(self, *arguments: str, run_dir: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.log = run_dir.parent / f"{self.mark}.out"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [FEDWARD, "simulate", *arguments],
                cwd=run_dir.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"FEDWARD_TEST_MARK": self.mark},
                start_new_session=True,
            )

    def wait_for(self, text: str, seconds: float = 240) -> None:
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


def test_ctrl_c_leaves_nothing_and_resume_gives_the_uninterrupted_weights(
    first_run, simulate, small, tmp_path: Path
):
    run_dir = tmp_path / "run"
    running = Running(*small, f"run_dir={run_dir}", run_dir=run_dir)
    running.wait_for("round 1/3")
    assert len(running.processes()) > 3, "the mark does not reach Ray's processes"
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 130
    assert running.gone_within(0) == []
    said = running.log.read_text()
    assert f"resume={run_dir}" in said
    assert "Traceback" not in said
    assert not (run_dir / "result.json").exists()
    assert not (run_dir / "work").exists()

    resumed = subprocess.run(
        [FEDWARD, "simulate", f"resume={run_dir}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    finished = type(first_run)(code=0, out=resumed.stdout, err="", run_dir=run_dir)
    assert [record["round"] for record in finished.result["rounds"]] == [1, 2, 3]
    assert (
        finished.result["final"]["weights_sha256"] == (first_run.result["final"]["weights_sha256"])
    )
    spent = {s: v["epsilon"] for s, v in finished.result["privacy"]["sites"].items()}
    assert spent == {s: v["epsilon"] for s, v in first_run.result["privacy"]["sites"].items()}

    nothing_to_do = subprocess.run(
        [FEDWARD, "simulate", f"resume={run_dir}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert nothing_to_do.returncode == 0
    assert "has a result" in nothing_to_do.stdout


def test_a_killed_command_takes_its_processes_along(small, tmp_path: Path):
    run_dir = tmp_path / "run"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        running = Running(*small, f"run_dir={run_dir}", run_dir=run_dir)
        running.wait_for("3 sites, 3 rounds")
        running.process.kill()
        running.process.wait()
        assert running.gone_within(60) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
