"""The commands of docs/data.md do what the page says."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import configs
from simulations.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty patients of a table with the columns that the page's experiments name."""
    root = tmp_path / "FOLDER"
    root.mkdir()
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "patient_id", "pneumonia", "split"])
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{number}.png")
            split = "test" if number % 4 < 2 else "train"
            table.writerow([f"{number}.png", f"p{number}", number % 2, split])
    return root


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 5
    assert all(command.startswith("fedward ") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_settings_of_every_command_are_known(command: str, folder: Path) -> None:
    _, _, *words = shlex.split(command.replace("FOLDER", str(folder)))
    settings = [word for word in words if "=" in word]
    assert settings
    configs.load(settings)


def test_the_check_of_the_page_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shlex.split(COMMANDS[0])[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "check.html").is_file()
    assert (tmp_path / "check.json").is_file()


def test_every_finding_of_the_code_is_on_the_page() -> None:
    root = Path(__file__).parents[2]
    sources = [*(root / "client" / "data" / "check").glob("*.py")]
    sources.append(root / "simulations" / "checks" / "data_command.py")
    text = "\n".join(path.read_text() for path in sources)
    codes = set(re.findall(r'code="(\w+)"', text))
    codes |= set(
        re.findall(r'"((?:same_pixels|patients_across|burned_in|recognizable)_?\w*)"', text)
    )
    assert len(codes) >= 16
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()
