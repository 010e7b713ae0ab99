"""The commands of ``fedward audit`` in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FEDWARD = Path(sys.executable).with_name("fedward")
LITTLE = ("--canaries", "60", "--runs", "2", "--lone-runs", "16")
SMALL = ("federation.rounds=2", "federation.steps_per_round=2", "privacy.images_per_patient=2")


def command(*arguments: str, folder: Path, name: str = "engine") -> subprocess.Popen[str]:
    work = folder / "tmp"
    work.mkdir(exist_ok=True)
    return subprocess.Popen(
        [FEDWARD, "audit", name, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(work), "OMP_NUM_THREADS": "1"},
    )


def left_behind(folder: Path) -> list[Path]:
    """All but the cache that torch makes for whoever uses one of its optimisers."""
    return [path for path in (folder / "tmp").iterdir() if "torchinductor" not in path.name]


def finished(*arguments: str, folder: Path, name: str = "engine") -> tuple[int, str, str]:
    with command(*arguments, folder=folder, name=name) as process:
        out, err = process.communicate(timeout=1800)
    assert left_behind(folder) == []
    return process.returncode, out, err


@pytest.mark.parametrize("noise", [(), ("--system-noise",)])
def test_an_audit_stays_below_the_claim(tmp_path: Path, noise: tuple[str, ...]) -> None:
    figures = tmp_path / "audit.json"
    settings = (*SMALL, "privacy.epsilon=6", "finetune=head", *LITTLE, *noise)
    code, out, err = finished(*settings, "--json", str(figures), folder=tmp_path)
    assert code == 0, err
    found = json.loads(figures.read_text())
    assert 5.9 < found["epsilon_claimed"] <= 6
    assert 0 <= found["epsilon_lower_bound"] < found["epsilon_claimed"]
    assert found["epsilon_lower_bound"] == max(bound["epsilon"] for bound in found["bounds"])
    assert (found["confidence"], found["passes_claim"]) == (0.95, False)
    assert (found["delta"], found["unit"], found["accountant"]) == (1e-5, "patient", "pld")
    assert found["adjacency"] == "zero-out"
    assert found["seconds"] > 0
    assert found["noise"] == ("system" if noise else "simulated")
    assert found["recipe"]["finetune"] == "head"
    assert found["recipe"]["images_per_patient"] == 2
    assert "proved: epsilon at least" in out
    assert "zero-out adjacency" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("privacy=none",), "privacy=none: nothing is claimed"),
        (("privacy.engine=opacus_hooks",), "needs privacy.engine=bookkeeping"),
        (("augment=mix", "augment.pool=."), "augment=none"),
        (("privacy.epsiln=4",), "did you mean privacy.epsilon?"),
        (("privacy.epsilon=-1",), "privacy.epsilon"),
        (("model=nobody",), "no such choice"),
        (("model.architecture=resnet18", "model.patch_size=null", *LITTLE), "BatchNorm"),
        (("--confidence", "1.5"), "--confidence=1.5"),
        (("--json", "absent/figures.json"), "no such folder"),
        (("--nonsense",), "--nonsense: no such option"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    refused(finished(*arguments, folder=tmp_path), complaint)


def refused(met: tuple[int, str, str], complaint: str) -> None:
    code, out, err = met
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert complaint in err


@pytest.fixture
def run_dir(first_run: Any, tmp_path: Path) -> Path:
    """A copy of a run that ``fedward simulate`` left: three hospitals of phantoms."""
    assert first_run.code == 0, first_run.err
    return shutil.copytree(first_run.run_dir, tmp_path / "run")


def test_a_run_is_audited_and_its_report_says_so(run_dir: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    code, out, err = finished(str(run_dir), folder=tmp_path, name="run")
    assert code == 0, err
    audit = json.loads((run_dir / "audit.json").read_text())
    assert list(audit["sites"]) == ["hospital-1", "hospital-2", "hospital-3"]
    assert audit["passes_claim"] is False
    assert 7.5 < audit["epsilon_claimed"] <= 8
    assert out.splitlines()[-1] == str(run_dir / "audit.html")
    code, out, err = finished(
        "--run", str(run_dir), "--count", "1", folder=tmp_path, name="inversion"
    )
    assert code == 0, err
    assert "with privacy, SSIM was" in out
    report = (run_dir / "report.html").read_text()
    assert "Claimed and measured privacy" in report
    assert report.count("<img ") == 4
    # nothing else of the run was touched
    assert {path for path, content in before.items() if path.read_bytes() != content} <= {
        run_dir / "report.html"
    }
    added = {path.name for path in run_dir.rglob("*") if path.is_file() and path not in before}
    assert added == {"audit.json", "audit.html", "inversion.json", "inversion.html"}


def test_what_is_no_finished_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "result.json").unlink()  # as a run that goes on, or was killed
    met = finished(str(run_dir), folder=tmp_path, name="run")
    refused(met, "no result of a finished run")
    assert not (run_dir / "audit.json").exists()
    shutil.rmtree(run_dir)
    met = finished("--run", str(run_dir), folder=tmp_path, name="inversion")
    refused(met, "not the folder of a run")
    assert not run_dir.exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_audit_leaves_nothing(tmp_path: Path, stop: signal.Signals) -> None:
    figures = tmp_path / "audit.json"
    with command("--json", str(figures), folder=tmp_path) as process:
        deadline = time.monotonic() + 600
        while not list((tmp_path / "tmp").glob("fedward-audit-*/*/ledger.sqlite")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(stop)
        process.send_signal(stop)
        out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "Interrupted; nothing is left behind."
    assert "Traceback" not in err
    assert left_behind(tmp_path) == []
    assert not figures.exists()
