"""Which trial is next."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from common.config import Config
from simulations.comparison import workers
from simulations.comparison.folder import Folder
from simulations.comparison.trial import Job
from simulations.comparison.workers import Crew, Ending, _next


def job(name: str, folder: Folder, start: str | None = None) -> Job:
    return Job(name=name, start=start, folder=folder, config=Config())


def test_in_order(tmp_path: Path) -> None:
    folder = Folder(path=tmp_path)
    a, b = job("a", folder), job("b", folder)
    waiting = deque([a, b])
    assert _next(waiting, []) is a
    assert _next(waiting, [a]) is b
    assert _next(waiting, [a, b]) is None


def test_a_beginning_that_is_being_made_is_waited_for(tmp_path: Path) -> None:
    folder = Folder(path=tmp_path)
    one, same, other, plain = (
        job("one", folder, "s"),
        job("same", folder, "s"),
        job("other", folder, "t"),
        job("plain", folder),
    )
    waiting = deque([same, other, plain])
    assert _next(waiting, [one]) is other
    assert _next(waiting, [one, other]) is plain
    assert _next(waiting, [one, other, plain]) is None
    assert list(waiting) == [same]
    folder.start("s").parent.mkdir()
    folder.start("s").write_bytes(b"made")
    assert _next(waiting, [one]) is same


def test_nobody_waits_for_nobody(tmp_path: Path) -> None:
    folder = Folder(path=tmp_path)
    same = job("same", folder, "s")
    assert _next(deque([same]), []) is same


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("killed: little memory")])
@pytest.mark.parametrize("deaths", [1, 2])
def test_a_process_that_is_killed_costs_its_trial_a_second_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, deaths: int
) -> None:
    """A Ray whose first processes die: no test can have Ray's own memory monitor kill one."""
    left = [error] * deaths
    hired: list[str] = []

    def get(task: str) -> str | None:
        if task == "a" and left:
            raise left.pop()
        return None

    def worker(num_threads: int) -> Any:
        hired.append(str(num_threads))
        return SimpleNamespace(run=SimpleNamespace(remote=lambda job: job.name))

    def remote(**_: Any) -> Any:
        return lambda _: SimpleNamespace(remote=worker)

    def wait(tasks: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        return tasks[:num_returns], tasks[num_returns:]

    monkeypatch.setattr(workers, "ray", SimpleNamespace(remote=remote, get=get, wait=wait))
    folder, ended = Folder(path=tmp_path), list[Ending]()
    crew = Crew(num_workers=1, num_cpus=1, num_gpus=0)
    crew.run([job("a", folder), job("b", folder)], began=lambda _: None, ended=ended.append)
    assert [(one.name, one.attempts, one.problem is None) for one in ended] == [
        ("a", 2, deaths == 1),
        ("b", 1, True),
    ]
    assert len(hired) == 1 + deaths
    crew.run([job("c", folder)], began=lambda _: None, ended=ended.append)
    assert len(hired) == 1 + deaths  # the crew of before
