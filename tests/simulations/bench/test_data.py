from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from common.errors import UsageError
from simulations.cli import app


def test_the_bench_prints_and_writes_its_figures_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    figures = tmp_path / "figures.json"
    few = ("--num-phantoms", "16", "--size", "32", "--times", "1")
    done = CliRunner().invoke(
        app, ["bench", "data", *few, "--folder", str(disk), "--json", str(figures)]
    )
    assert done.exit_code == 0, done.output
    assert list(disk.iterdir()) == []
    result = json.loads(figures.read_text())
    names = [one["name"] for one in result["speeds"]]
    assert len(names) == 5
    for one in result["speeds"]:
        assert one["name"] in done.output
        assert one["images_per_second"] == one["num_images"] / one["seconds"] > 0
    num_images = result["speeds"][0]["num_images"]
    assert [one["num_images"] for one in result["speeds"]] == [*[num_images] * 4, 5 * num_images]
    assert result["loader_share"] == result["loader_seconds"] / result["step_seconds"] > 0


def test_a_folder_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "data", "--folder", str(tmp_path / "absent")])
    assert isinstance(done.exception, UsageError)
    assert "No such file" in str(done.exception)
