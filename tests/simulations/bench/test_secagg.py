from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import UsageError
from simulations.bench.secagg import measure
from simulations.cli import app


def test_the_bench_prints_and_writes_its_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    asked = ("--weights", "1000", "--sites", "3", "--sites", "5", "--missing", "0.2")
    done = CliRunner().invoke(app, ["bench", "secagg", *asked, "--json", str(figures)])
    assert done.exit_code == 0, done.output
    costs = json.loads(figures.read_text())["costs"]
    assert [(one["num_sites"], one["num_missing"]) for one in costs] == [(3, 0), (5, 1)]
    for one in costs:
        assert str(one["num_sites"]) in done.output
        # a masked vector of 32-bit numbers, and keys, shares and signatures beside it
        assert one["plain_bytes"] == 4000 < one["site_sent_bytes"] < 4000 + 1000 * one["num_sites"]
        assert one["site_seconds"] > 0


def test_more_missing_than_the_threshold_bears_is_refused() -> None:
    with pytest.raises(UsageError, match="max_dropouts"):
        measure(10, 3, num_missing=2)
