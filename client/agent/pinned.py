"""The roster that is pinned at the site: the hospital's own file, read for each secure sum."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from common.secure_aggregation import roster_file
from common.secure_aggregation.roster import Roster

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """What is pinned at one moment.

    Attributes:
        roster: absent if there is none, or none that this site can be part of.
        problem: why, in one line for the hospital; it never leaves.
    """

    roster: Roster | None
    problem: str = ""

    @property
    def digest(self) -> str:
        """Of the roster; empty if there is none."""
        return "" if self.roster is None else self.roster.digest


def read(path: Path | None, *, name: str, public_key: str) -> Pin:
    """The roster in the file at ``path``, if it names the hospital ``name`` with its own key."""
    if path is None:
        return Pin(roster=None, problem="site.yaml names no roster (roster: pinned/roster.json)")
    try:
        if path.exists() and path.stat().st_mode & _OTHERS_MAY_WRITE:
            raise UsageError(f"{path}: other users may write it; chmod go-w")
        roster = roster_file.read(path).roster
        check_own(roster, name=name, public_key=public_key)
    except (OSError, UsageError) as error:
        return Pin(roster=None, problem=str(error))
    return Pin(roster=roster)


def check_own(roster: Roster, *, name: str, public_key: str) -> None:
    """Hold a roster to what a hospital knows of itself.

    Raises:
        UsageError: It does not name the hospital with its own key.
    """
    if name not in roster.names:
        raise UsageError(f"the roster does not name {name}, which is this hospital")
    if roster.key_of(name) != public_key:
        raise UsageError(f"the roster names {name} with another key than the one of its agent")


class PinnedRoster:
    """A roster that follows its file.

    Guarantees:
        ``on_change`` is called with each pin that differs from the one before, and with that one,
        and has returned before anybody gets the new one. Without a file nothing is followed.
    """

    def __init__(
        self,
        path: Path | None,
        look: Callable[[Path | None], Pin],
        on_change: Callable[[Pin, Pin], None],
    ) -> None:
        self._path, self._look, self._on_change = path, look, on_change
        self._lock = threading.Lock()
        self._last = Pin(roster=None)

    def current(self) -> Pin:
        """What is pinned now."""
        with self._lock:
            found = self._look(self._path)
            if found != self._last and self._path is not None:
                self._on_change(found, self._last)
            self._last = found
            return found
