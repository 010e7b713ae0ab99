"""The runner: each approved ClientApp in a process of its own that need not import Flower first.

It stands where Flower's SuperExec would ask the gate for work. SuperExec starts a new Python for
each message, which spends seconds on imports; the runner has imported Flower once and forks. What
a bundle brings is imported in the forked process alone, and ends with it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import httpx
import numpy as np

from client.agent import flower_task

_log = logging.getLogger("fedward.runner")
_OURS = frozenset({"client", "common", "configs", "server", "simulations"})
# what the consortium's app imports: what it needs of others is then there in each fork
_WARM = ("client.app", "client.agent.forwarder")
_IDLE_SECONDS = 0.1
_AWAY_SECONDS = 1.0
_GRACE_SECONDS = 10.0


class GivesTokens(Protocol):
    """Work that waits: `client.agent.flower_task.GateTasks`."""

    def next_token(self) -> str | None:
        """The secret of a task that may run, if there is one."""
        ...

    def close(self) -> None:
        """Asks no more."""
        ...


class Runner:
    """Forks a process for each task.

    Guarantees:
        Code of a bundle runs in a process that was forked for its task, after modules of Fedward
        were forgotten there: a bundle that brings its own gets its own, as in a new Python. Random
        generators of Python and NumPy are seeded anew in it.
    """

    def __init__(self, tasks: GivesTokens, run_task: Callable[[str], None]) -> None:
        self._tasks, self._run_task = tasks, run_task
        self._children: set[int] = set()
        self._is_over = False
        self._is_away = False

    def work(self) -> None:
        """Runs tasks until SIGTERM or SIGINT, and ends those that are left."""
        before = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while not self._is_over:
                self._reap()
                self._step()
        finally:
            self._end_children()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._is_over = True

    def _step(self) -> None:
        try:
            token = self._tasks.next_token()
        except httpx.HTTPError as error:
            if not self._is_away:
                _log.warning("the gate does not answer (%s)", type(error).__name__)
            self._is_away = True
            time.sleep(_AWAY_SECONDS)
            return
        self._is_away = False
        if token is None:
            time.sleep(_IDLE_SECONDS)
        else:
            self._children.add(self._fork(token))

    def _fork(self, token: str) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        # a signal between fork and the child's own handlers must not run the parent's
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            child = os.fork()
            if child == 0:
                self._be_child(token)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        return child

    def _be_child(self, token: str) -> None:
        """Never comes back."""
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
            self._tasks.close()
            _log.info("started `flwr-clientapp` as process %d", os.getpid())
            np.random.seed()  # noqa: NPY002, RUF100 -- what a bundle may draw from
            forget_ours()
            self._run_task(token)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            _log.exception("a task failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for child in tuple(self._children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self._children.discard(child)

    def _end_children(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(_IDLE_SECONDS)
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._children.clear()


def forget_ours() -> None:
    """Lets the next import of a module of ours look for it anew, in a bundle's folder first."""
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
        del sys.modules[name]


def run(address: str) -> None:
    """Runs the tasks that the gate at ``address`` gives out, until SIGTERM or SIGINT."""
    for name in _WARM:
        importlib.import_module(name)
    tasks = flower_task.GateTasks(address)
    _log.info("runs what the gate at %s lets pass", address)
    try:
        Runner(tasks, lambda token: flower_task.run_client_app(address, token)).work()
    finally:
        tasks.close()
