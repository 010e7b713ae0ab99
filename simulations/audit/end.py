"""How commands of ``fedward audit`` end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_PASSED, EXIT_INTERRUPTED = 1, 130


@contextmanager
def orderly_end() -> Iterator[None]:
    """The first Ctrl-C, or SIGTERM, ends the audit; another one cannot disturb the clearing up."""

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        for one in previous:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {one: signal.signal(one, interrupt) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
