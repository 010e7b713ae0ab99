"""The wheel alone, in an environment of its own, is the whole product."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        tops = {name.split("/")[0] for name in file.namelist()}
    own = {"client", "common", "configs", "server", "simulations"}
    assert {top for top in tops if not top.endswith(".dist-info")} == own


def test_the_command_works_from_the_wheel_alone(wheel: Path, first_run, tmp_path: Path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    (site_packages,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site_packages)
    # The dependencies, without the checkout: .pth files of a folder added this way are not read.
    dependencies = Path(pytest.__file__).parents[1]
    (site_packages / "dependencies.pth").write_text(f"{dependencies}\n")

    def command(*arguments: str) -> str:
        code = "import sys; from simulations.cli import main; sys.exit(main())"
        done = subprocess.run(
            [home / "bin" / "python", "-P", "-c", code, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "cbis_masses" in command(
        "simulate", "experiment=cbis_masses", "data.root=x", "--cfg", "job"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps(first_run.result))
    command("report", "run")
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    found = command("simulate", "--info", "searchpath")
    assert "pkg://configs" in found
