"""Which trial is next."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from common.config import Config
from simulations.comparison.folder import Folder
from simulations.comparison.trial import Job
from simulations.comparison.workers import _next


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
