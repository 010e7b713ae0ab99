"""A command's work in a process of its own, so that nothing of Flower or Ray stays behind.

The child writes what happens as JSON lines; the parent shows it, and outlives it. If the parent
dies, the child ends itself, and Ray's processes with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulations.hosting.process_tree import adopt_orphans, end_descendants

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONUNBUFFERED": "1",
}


def run_child(
    module: str, folder: Path, *, work: Path, log: Path, show: Callable[[dict[str, Any]], None]
) -> tuple[str, int]:
    """Run ``python -m module FOLDER EVENTS RAY_DIR``; returns its last words and an exit code.

    Args:
        module: whose ``main`` ends by itself when its standard input does.
        folder: what it works on.
        work: an empty folder that it runs in.
        log: takes what it prints.
        show: told of each event.
    """
    adopt_orphans()
    read_end, write_end = os.pipe()
    # Ray's sockets need a short path.
    ray_dir = tempfile.mkdtemp(prefix="fedward-")
    command = [sys.executable, "-P", "-m", module]
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                [*command, str(folder), str(write_end), ray_dir],
                cwd=work,
                env={**os.environ, **QUIET, "FLWR_HOME": str(work / "flwr")},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
            )
        os.close(write_end)
        return _follow(child, read_end, show)
    finally:
        shutil.rmtree(ray_dir, ignore_errors=True)


def _follow(
    child: subprocess.Popen[bytes], events: int, show: Callable[[dict[str, Any]], None]
) -> tuple[str, int]:
    message = "the simulation ended without a word"
    try:
        with os.fdopen(events) as lines:
            for line in lines:
                event: dict[str, Any] = json.loads(line)
                message = event.get("message", message)
                show(event)
        code = child.wait()
        return message, EXIT_FAILED if code < 0 else code  # below 0: killed
    except KeyboardInterrupt:
        return "interrupted", EXIT_INTERRUPTED
    finally:
        # A second Ctrl-C must not leave half of the processes behind.
        with signals({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
            end_descendants()


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, and SIGTERM from a scheduler, end what happens here in the same orderly way."""
    with signals({signal.SIGINT: _interrupt, signal.SIGTERM: _interrupt}):
        yield


def _interrupt(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


@contextmanager
def signals(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """For a while, signals do what ``handlers`` say."""
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class ChildSide:
    """The child's end: the folder, a way to tell events, and the folder for Ray."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.folder = Path(arguments[0])
        self.ray_dir = Path(arguments[2])
        self._events = os.fdopen(int(arguments[1]), "w", buffering=1)
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(self, event: dict[str, Any]) -> None:
        """Send one event to the parent."""
        self._events.write(json.dumps(event) + "\n")


def _end_with_parent() -> None:
    """Standard input is a pipe whose other end only the parent holds."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(EXIT_FAILED)
