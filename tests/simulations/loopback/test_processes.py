"""Processes that are started from units, and ended whatever happens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.errors import RunFailed
from simulations.loopback.processes import Processes, free_ports, is_open

UNIT = """\
[Service]
User={user}
Environment=PATH=/usr/bin:/bin
WorkingDirectory={folder}
ExecStart={folder}/start
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    (tmp_path / "logs").mkdir()
    made = Processes(logs=tmp_path / "logs", seconds=60.0)
    yield made
    made.stop()


def unit(folder: Path, script: str) -> Path:
    (folder / "start").write_text("#!/bin/sh\n" + script)
    (folder / "start").chmod(0o755)
    path = folder / "one.service"
    path.write_text(UNIT.format(user=os.getuid(), folder=folder))
    return path


def test_a_process_runs_in_its_units_folder_with_what_it_is_given(
    processes: Processes, tmp_path: Path
) -> None:
    path = unit(tmp_path, 'echo "$PWD $MORE"\nexec sleep 600\n')
    processes.start("one", path, MORE="word")
    processes.until(lambda: processes.log("one").read_text() != "")
    assert processes.log("one").read_text() == f"{tmp_path} word\n"


def test_what_a_process_started_ends_with_it_also_if_it_will_not(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.loopback.processes._GRACE_SECONDS", 0.2)
    path = unit(tmp_path, "trap '' TERM\nsleep 600 &\necho $!\nwhile :; do sleep 1; done\n")
    processes.start("one", path)
    processes.until(lambda: processes.log("one").read_text() != "")
    child = int(processes.log("one").read_text())
    mine = processes.running["one"].pid
    processes.stop()
    assert not psutil.pid_exists(mine)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
    assert processes.running == {}


def test_a_process_that_ends_early_is_named_with_its_words(
    processes: Processes, tmp_path: Path
) -> None:
    processes.start("one", unit(tmp_path, "echo gone\nexit 3\n"))
    with pytest.raises(RunFailed, match="one ended\n--- one\ngone"):
        processes.until(lambda: False)
    processes.until(lambda: processes.running["one"].poll() == 3, ended=True)
    assert processes.wait("one") == 3


def test_what_never_comes_is_given_up(processes: Processes) -> None:
    processes.seconds = 0.1
    with pytest.raises(RunFailed, match=r"nothing more comes after 0\.1 s"):
        processes.until(lambda: False)


def test_a_command_with_another_exit_code_is_a_failure(processes: Processes) -> None:
    said = processes.ask("fedward", "nonsense")
    assert said.code == 2
    assert "nonsense" in said.expect(2)
    with pytest.raises(RunFailed, match="fedward nonsense: exit code 2"):
        said.expect()


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert not any(map(is_open, ports))
