from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from common.errors import UsageError
from common.privacy.accountants import normalise
from simulations.bench.ledger import mixed_events
from simulations.cli import app


def test_the_bench_prints_and_writes_its_figures_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    figures = tmp_path / "figures.json"
    few = ("--num-events", "60", "--times", "3")
    done = CliRunner().invoke(
        app, ["bench", "ledger", *few, "--folder", str(disk), "--json", str(figures)]
    )
    assert done.exit_code == 0, done.output
    assert list(disk.iterdir()) == []
    timings = json.loads(figures.read_text())["timings"]
    assert len(timings) == 5
    for one in timings:
        assert one["name"] in done.output
        assert 0 < one["least_seconds"] <= one["median_seconds"] <= one["p95_seconds"]
        assert one["p95_seconds"] <= one["most_seconds"]
        assert one["processor_seconds"] > 0


def test_the_events_are_mixed() -> None:
    events = mixed_events(10_000)
    assert len(events) == 10_000
    assert len({type(event) for event in events}) == 3
    assert len(normalise(events).parts) > 50


def test_a_folder_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "ledger", "--folder", str(tmp_path / "absent")])
    assert isinstance(done.exception, UsageError)
    assert "No such file" in str(done.exception)
