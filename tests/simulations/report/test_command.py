"""``fedward report``: what it writes, and what it refuses in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.cli import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`main` in this process: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedward", "report", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        out, err = capsys.readouterr()
        return (code if isinstance(code, int) else 0), out, err

    return run


def refused(met: tuple[int, str, str], words: str) -> None:
    code, out, err = met
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err


def test_several_runs_need_a_place(call: Call, tmp_path: Path) -> None:
    refused(call(str(tmp_path / "a"), str(tmp_path / "b")), "out is not set")
    refused(call("out="), "must not be empty")
    refused(call(f"out={tmp_path / 'out'}"), "must not be empty")
    refused(call("a", "out=b", "out=c"), "name one folder")
    refused(call("a", "out=b", "--out", "c"), "name one folder")


def test_a_place_that_holds_something_else_is_left_alone(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refused(call("a", f"out={tmp_path}"), "not empty")
    (tmp_path / "comparison.json").write_text("{}")
    (tmp_path / "request.json").write_text("{}")
    refused(call("a", f"out={tmp_path}"), "not empty")
    assert len(list(tmp_path.iterdir())) == 3


def test_folders_without_a_run_are_refused(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(call(str(tmp_path / "nowhere"), f"out={out}"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(call(str(tmp_path / "empty"), "--out", str(out)), "no result of a run")
    assert not out.exists()


def test_a_comparison_of_another_version_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps({"schema": "fedward.comparison/9"}))
    refused(call(str(tmp_path)), "fedward.comparison/9")
    (tmp_path / "comparison.json").write_text("[]")
    refused(call(str(tmp_path)), "no result of a comparison")
