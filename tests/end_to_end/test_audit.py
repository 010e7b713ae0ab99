"""The command ``fedward audit engine`` in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FEDWARD = Path(sys.executable).with_name("fedward")
LITTLE = ("--canaries", "60", "--runs", "2", "--lone-runs", "16")
SMALL = ("federation.rounds=2", "federation.steps_per_round=2", "privacy.images_per_patient=2")


def command(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    work = folder / "tmp"
    work.mkdir(exist_ok=True)
    return subprocess.Popen(
        [FEDWARD, "audit", "engine", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(work), "OMP_NUM_THREADS": "1"},
    )


def left_behind(folder: Path) -> list[Path]:
    """All but the cache that torch makes for whoever uses one of its optimisers."""
    return [path for path in (folder / "tmp").iterdir() if "torchinductor" not in path.name]


def finished(*arguments: str, folder: Path) -> tuple[int, str, str]:
    with command(*arguments, folder=folder) as process:
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
    code, out, err = finished(*arguments, folder=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert complaint in err


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
