"""``fedward compare`` as a user runs it: killed, interrupted, gone on with, with a failing arm."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

TINY = (
    "size=smoke",
    "epsilons=8,inf",
    "arms=federated",
    "arm.bad=model.architecture=vit_nowhere",
    "data.phantom.num_train_per_site=8",
    "data.phantom.num_val=8",
    "data.phantom.num_test=24",
    "data.phantom.size=32",
    "federation.num_sites=2",
)


def results(out: Path) -> dict[str, int]:
    """When each finished trial was written."""
    found = (out / "trials").glob("*/result.json") if (out / "trials").exists() else ()
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def kill_a_worker(command: Any) -> None:
    """Kill a process that is at a trial."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for process in command.processes():
            if process.name().startswith("ray::Worker.run"):
                process.kill()
                return
        time.sleep(0.02)
    pytest.fail("no worker was seen at a trial")


def test_a_comparison_survives_what_happens_to_it(start_run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def compare() -> Any:
        return start_run(*TINY, f"out={out}", run_dir=out, command="compare")

    first = compare()
    first.wait_for("1/4  ")
    first.process.kill()
    first.process.wait(60)
    assert first.gone_within(60) == []
    done = results(out)
    assert done

    second = compare()
    second.wait_for("training ...")
    busy = subprocess.run(
        [*second.process.args[:2], *TINY, f"out={out}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert busy.returncode == 2
    assert "in use by another command" in busy.stderr
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(120) == 130
    assert second.gone_within(1) == []
    assert "Go on with the same command" in second.log.read_text()
    assert not (out / "work").exists()

    third = compare()
    third.wait_for("training ...")
    kill_a_worker(third)
    assert third.process.wait(600) == 1, third.log.read_text()
    assert third.gone_within(1) == []
    said = third.log.read_text()
    assert "(begun again: its process had died)" in said
    assert "FAILED: model.architecture=vit_nowhere" in said
    assert results(out).items() >= done.items(), "a finished trial was run again"
    assert not (out / "work").exists()

    comparison = json.loads((out / "comparison.json").read_text())
    assert {one["trial"] for one in comparison["missing"]} == {
        "bad epsilon 8 seed 1",
        "bad epsilon inf seed 1",
    }
    assert all("vit_nowhere" in one["problem"] for one in comparison["missing"])
    assert [(cell["arm"], cell["epsilon"]) for cell in comparison["cells"]] == [
        ("federated", 8.0),
        ("federated", None),
    ]
    assert comparison["equal"]["num_test_patients"] == 24
    assert "MISSING: 2 of 4 trials" in said


@pytest.mark.long
def test_a_run_gives_what_a_simulation_gives(simulate: Any, start_run: Any, tmp_path: Path) -> None:
    words = (*(word for word in TINY if not word.startswith("arm")), "arms=federated")
    out = tmp_path / "out"
    command = start_run(*words, "epsilons=8", f"out={out}", run_dir=out, command="compare")
    assert command.process.wait(600) == 0, command.log.read_text()
    assert len(results(out)) == 1
    again = start_run(*words, "epsilons=8", f"out={out}", run_dir=out, command="compare")
    assert again.process.wait(600) == 0
    assert "1 trials, 1 of them have a result" in again.log.read_text()
    assert "starting Ray" not in again.log.read_text()
    (trial,) = (out / "trials").iterdir()
    config = json.loads((trial / "result.json").read_text())["config"]
    overrides = [
        "model=test_vit",
        "data.image_size=32",
        f"privacy.delta={config['privacy']['delta']!r}",
        *(word for word in TINY if word.startswith(("data.", "federation."))),
        "federation.rounds=1",
        "federation.steps_per_round=2",
        "seed=1",
        "partition.seed=42",
        "data.split_seed=42",
        f"simulation.noise_seed={config['simulation']['noise_seed']}",
    ]
    plain = simulate(*overrides, run_dir=tmp_path / "run")
    assert plain.code == 0, plain.err
    ours = json.loads((trial / "result.json").read_text())["final"]
    assert ours["weights_sha256"] == plain.result["final"]["weights_sha256"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("size=smoke", "experiment=cbis_masses", "data.root=nowhere"), "nowhere"),
        (("size=smoke", "arms=centralised"), "arms=centralised: no such choice"),
        (("size=smoke", "seed=3"), "use seeds=1,2,3"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], says: str, start_run: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = start_run(*words, f"out={out}", run_dir=out, command="compare")
    assert command.process.wait(120) == 2
    said = command.log.read_text().splitlines()
    (line,) = [line for line in said if line.startswith("Error: ")]
    assert says in line
    assert said[-1] == line
    assert not out.exists()


def test_a_folder_of_something_else_is_left_alone(start_run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    command = start_run("size=smoke", f"out={out}", run_dir=out, command="compare")
    assert command.process.wait(60) == 2
    assert "not empty, and not the folder of a comparison" in command.log.read_text()
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
