"""A process that works when told to, and answers each line with one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast


class Contestant:
    """What a bench talks to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._in = cast("IO[str]", process.stdin)
        self._out = cast("IO[str]", process.stdout)

    def send(self, word: str) -> None:
        """Tell it to begin."""
        self._in.write(f"{word}\n")
        self._in.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for what it says; its first word says that it is ready, or ``error``."""
        line = self._out.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def ask(self, word: str) -> dict[str, Any]:
        """Tell it, and wait."""
        self.send(word)
        return self.answer()


@contextmanager
def contestant(module: str, entry: Mapping[str, Any]) -> Iterator[Contestant]:
    """``python -m MODULE JSON``, until the block is left."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, json.dumps(dict(entry))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Contestant(process)
        cast("IO[str]", process.stdin).close()
