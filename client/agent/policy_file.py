"""The policy's file: read anew for each request, and a file that cannot be read refuses all."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.agent import policy
from client.agent.policy import Policy
from common.errors import UsageError

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the file says at one moment.

    Attributes:
        sha256: of the file's content; empty if there was none to read.
        policy: absent if the file could not be read or understood.
        problem: why, in one line for the hospital; it never leaves.
    """

    sha256: str
    policy: Policy | None
    problem: str = ""


def read(path: Path) -> Reading:
    """The policy in the file at ``path``; whatever is wrong with it, a reading without policy."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            content = file.read()
    except OSError as error:
        return Reading(sha256="", policy=None, problem=f"{path}: {error.strerror}")
    digest = hashlib.sha256(content).hexdigest()
    try:
        if mode & _OTHERS_MAY_WRITE:
            raise UsageError("other users may write it; chmod go-w")
        return Reading(sha256=digest, policy=policy.parse(content.decode()))
    except UnicodeDecodeError:
        return Reading(sha256=digest, policy=None, problem=f"{path}: not text (UTF-8)")
    except ValueError as error:
        return Reading(sha256=digest, policy=None, problem=f"{path}: {error}")


class PolicyFile:
    """A policy that follows its file.

    Guarantees:
        ``on_change`` is called for each reading that differs from the one before, and has returned
        before anybody gets the new policy.
    """

    def __init__(self, path: Path, on_change: Callable[[Reading, Policy | None], None]) -> None:
        self._path, self._on_change = path, on_change
        self._lock = threading.Lock()
        self._last: Reading | None = None

    def current(self) -> Reading:
        """What the file says now."""
        with self._lock:
            found = read(self._path)
            if found != self._last:
                self._on_change(found, None if self._last is None else self._last.policy)
                self._last = found
            return found
