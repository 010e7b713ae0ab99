"""Ray for one command alone, started while other things are read."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

from common.errors import RunFailed

# Ray gives its processes 30 seconds to come up, which a busy machine may not manage.
_RAY_ATTEMPTS = 5


class RayStart:
    """Starts Ray in the background; whoever calls `wait` finds it running.

    Ray's processes end with the *thread* that started them, so this one stays.
    """

    def __init__(self, num_cpus: int, ray_dir: Path) -> None:
        self._num_cpus = num_cpus
        self._ray_dir = ray_dir
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._start, daemon=True).start()

    def _start(self) -> None:
        for _ in range(_RAY_ATTEMPTS):
            self._error = self._attempt()
            if self._error is None or "timed out" not in str(self._error):
                break
            print(f"Ray did not start: {self._error}", file=sys.stderr, flush=True)
        self._done.set()
        threading.Event().wait()

    def _attempt(self) -> Exception | None:
        try:
            import ray

            ray.shutdown()  # what an attempt before this one left
            ray.init(
                address="local",
                num_cpus=self._num_cpus,
                include_dashboard=False,
                logging_level=logging.WARNING,
                _temp_dir=str(self._ray_dir),
            )
        except Exception as error:
            return error
        return None

    def wait(self) -> None:
        """Return when Ray runs.

        Raises:
            RunFailed: if it could not be started.
        """
        self._done.wait()
        if self._error is not None:
            raise RunFailed(f"Ray did not start: {self._error}")
