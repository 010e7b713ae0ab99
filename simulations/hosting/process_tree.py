"""Leaves no process behind: children of children included.

Ray's daemons outlive the process that started them for a while, and a worker whose parent ends
first becomes a child of process 1. On Linux this process adopts such orphans instead, so that it
can end exactly what it started, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 10


def adopt_orphans() -> None:
    """Become the parent of every orphan among this process's descendants (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(*, grace_seconds: float = _GRACE_SECONDS) -> None:
    """Ask every descendant to end, kill those that do not and Ray's, and reap all of them."""
    asked = _signal_all("terminate")
    psutil.wait_procs(asked, timeout=grace_seconds if asked else 0)
    while stubborn := _signal_all("kill"):
        psutil.wait_procs(stubborn, timeout=grace_seconds)
    _reap()


def _signal_all(how: str) -> list[psutil.Process]:
    alive: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                getattr(process, "kill" if _is_rays(process) else how)()
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive


def _is_rays(process: psutil.Process) -> bool:
    """Ray's are not asked: a worker without work hears no signal but the last one."""
    words = process.cmdline()
    ray = find_spec("ray")
    folders = ray.submodule_search_locations if ray is not None else None
    programs = tuple(f"{folder}/" for folder in folders or ())
    return "".join(words).startswith("ray::") or any(word.startswith(programs) for word in words)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
