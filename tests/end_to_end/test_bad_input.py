"""Bad input: one line, exit code 2, no traceback, nothing left behind."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FEDWARD = Path(sys.executable).with_name("fedward")
TABLE = (
    "data=table",
    "data.columns.image=file",
    "data.columns.patient=patient_id",
    "data.columns.label=malignant",
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Forty patients with one PNG each, every second one malignant."""
    root = tmp_path / "study"
    root.mkdir()
    rng = np.random.default_rng(0)
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "patient_id", "malignant"])
        for number in range(40):
            Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(
                root / f"{number}.png"
            )
            table.writerow([f"{number}.png", f"SECRET-{number}", number % 2])
    return root


def refused(tmp_path: Path, *arguments: str) -> str:
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [FEDWARD, "simulate", *arguments, f"run_dir={run_dir}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.strip()
    assert line.startswith("Error: ")
    assert "\n" not in line
    assert "Traceback" not in done.stdout
    assert "SECRET" not in line
    assert not run_dir.exists()
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("privacy.epsilom=3",), "did you mean privacy.epsilon?"),
        (("model.architecture=resnet18", "model.patch_size=null"), "model.architecture=resnet18"),
        (("resume=nowhere",), "resume=nowhere: not the folder of a run"),
    ],
)
def test_settings(arguments: tuple[str, ...], says: str, tmp_path: Path):
    """One that the command sees itself, one that its child does; all others: in their process,
    tests/simulations/test_classification.py."""
    assert says in refused(tmp_path, *arguments)


def test_an_unreadable_image_is_named_by_its_row(study: Path, tmp_path: Path):
    (study / "16.png").write_bytes(b"not an image")
    assert "row 17" in refused(tmp_path, *TABLE, f"data.root={study}")


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "thesis.txt").write_text("years of work")
    done = subprocess.run(
        [FEDWARD, "simulate", f"run_dir={run_dir}"],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert (run_dir / "thesis.txt").read_text() == "years of work"
