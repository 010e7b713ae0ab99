"""A user of this machine, by name or number."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class UnixUser:
    """Whose processes and files they are; the group is the user's own."""

    name: str
    uid: int
    gid: int

    def own(self, path: Path) -> None:
        """Give ``path`` to this user, where that needs doing.

        Raises:
            UsageError: Only root may do that.
        """
        found = path.lstat()
        if (found.st_uid, found.st_gid) == (self.uid, self.gid):
            return
        try:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be given to the user {self.name} ({error.strerror}); run as root"
            ) from error

    def own_all(self, folder: Path) -> None:
        """Give ``folder`` and everything in it to this user."""
        self.own(folder)
        for path in sorted(folder.rglob("*")):
            self.own(path)


def find(given: str) -> UnixUser:
    """The user called ``given``; of a number that has no name, the group has the same number.

    >>> find("0").uid
    0

    Raises:
        UsageError: There is none.
    """
    try:
        known = pwd.getpwuid(int(given)) if given.isdecimal() else pwd.getpwnam(given)
    except (KeyError, OverflowError) as error:
        if given.isdecimal() and int(given) <= _MOST:
            return UnixUser(name=given, uid=int(given), gid=int(given))
        raise UsageError(f"user={given}: no such user on this machine") from error
    return UnixUser(name=given, uid=known.pw_uid, gid=known.pw_gid)


def myself() -> UnixUser:
    """The user of this process."""
    return find(str(os.getuid()))
