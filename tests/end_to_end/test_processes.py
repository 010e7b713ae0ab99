"""What a run leaves of processes and files when it is stopped, killed, and gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

FEDWARD = Path(sys.executable).with_name("fedward")


def test_ctrl_c_leaves_nothing_and_resume_gives_the_uninterrupted_weights(
    first_run, start_run, small, tmp_path: Path
):
    run_dir = tmp_path / "run"
    running = start_run(*small, f"run_dir={run_dir}", run_dir=run_dir)
    running.wait_for("round 1/3")
    assert len(running.processes()) > 3, "the mark does not reach Ray's processes"
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(600) == 130
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
        timeout=1800,
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
        timeout=1800,
        check=False,
    )
    assert nothing_to_do.returncode == 0
    assert "has a result" in nothing_to_do.stdout


def test_a_killed_command_takes_its_processes_along(start_run, small, tmp_path: Path):
    run_dir = tmp_path / "run"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        running = start_run(*small, f"run_dir={run_dir}", run_dir=run_dir)
        running.wait_for("3 sites, 3 rounds")
        running.process.kill()
        running.process.wait()
        assert running.gone_within(600) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
