"""Ray for a command: its own, started while other things are read, or one that runs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import RunFailed, UsageError
from simulations.hosting.child import QUIET
from simulations.hosting.ray_here import address_here

# Ray gives its processes 30 seconds to come up, which a busy machine may not manage.
_RAY_ATTEMPTS = 5
_CONNECT_SECONDS = 5.0
# Of the processes that stay on a Ray that runs.
_NAMESPACE = "fedward"


class Waits(Protocol):
    """Ray, running or on its way."""

    def wait(self) -> Sequence[Any]:
        """Return when Ray runs: with the actors that were opened ahead.

        Raises:
            RunFailed: if it could not be started, or they could not be opened.
        """
        ...


class RunningRay:
    """Ray that this process is connected to."""

    def wait(self) -> Sequence[Any]:
        """There is nothing to wait for."""
        return ()


class RayStart:
    """Starts Ray in the background; whoever calls `wait` finds it running.

    Ray's processes end with the *thread* that started them, so this one stays.
    """

    def __init__(
        self, num_cpus: int, ray_dir: Path, ahead: Callable[[], Sequence[Any]] = tuple
    ) -> None:
        self._num_cpus = num_cpus
        self._ray_dir = ray_dir
        self._open_ahead = ahead
        self._ahead: Sequence[Any] = ()
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._start, daemon=True).start()

    def _start(self) -> None:
        try:
            self._begin()
            self._ahead = self._open_ahead()
        except Exception as error:
            self._error = error
        self._done.set()
        threading.Event().wait()

    def _begin(self) -> None:
        for attempt in range(1, _RAY_ATTEMPTS + 1):
            try:
                self._attempt()
            except Exception as error:
                if attempt == _RAY_ATTEMPTS or "timed out" not in str(error):
                    raise RunFailed(f"Ray did not start: {error}") from error
                print(f"Ray did not start: {error}", file=sys.stderr, flush=True)
            else:
                return

    def _attempt(self) -> None:
        import ray

        ray.shutdown()  # what an attempt before this one left
        ray.init(
            address="local",
            num_cpus=self._num_cpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=str(self._ray_dir),
        )

    def wait(self) -> Sequence[Any]:
        """See `Waits`."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._ahead


def connect(address: str, empty: Path) -> None:
    """Use the Ray at ``address``: host:port, or ``auto`` for what `fedward ray start` started.

    Args:
        address: of a Ray that runs.
        empty: a folder without packages: Ray's processes import from where they are begun first.

    Raises:
        UsageError: if there is none.
    """
    import ray

    os.environ.update(QUIET)
    own = address_here()
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        with contextlib.chdir(empty):
            ray.init(
                address=own if address == "auto" and own is not None else address,
                namespace=_NAMESPACE,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"simulation.ray_address={address}: no Ray there ({reason}); start one with fedward "
            "ray start"
        ) from error
