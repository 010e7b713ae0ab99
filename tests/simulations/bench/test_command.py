"""What all benches have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import UsageError
from simulations.bench.command import app

BENCHES = sorted(
    one.name or one.callback.__name__ for one in app.registered_commands if one.callback
)


@pytest.mark.parametrize("bench", BENCHES)
def test_figures_that_cannot_be_written_are_refused_before_the_work(
    bench: str, tmp_path: Path
) -> None:
    path = tmp_path / "absent" / "figures.json"
    done = CliRunner().invoke(app, [bench, "--json", str(path)])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == f"--json={path}: no such folder"
    assert done.output == ""
