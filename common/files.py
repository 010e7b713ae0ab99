"""Files that are either whole or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from common.errors import UsageError


def check_out(option: str, path: Path | None) -> None:
    """Hold a file that is to be written after long work to what can be seen before it.

    Raises:
        UsageError: Its folder is not there or may not be written, or it is a folder itself.
    """
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{option}={path}: no such folder")
    if path.is_dir():
        raise UsageError(f"{option}={path}: is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option}={path}: the folder may not be written")


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write ``content`` under a temporary name beside ``path``, flush it to disk, then move it.

    A reader sees the old file or the new one, never a part; a failed write (full disk, kill)
    leaves no file under ``path`` that was not there before.

    Raises:
        OSError: if the folder cannot be written; the temporary file is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_new(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """As `write_atomically`, but what is there already stays.

    Raises:
        FileExistsError: if there is something under ``path``.
        OSError: if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    write_atomically(temporary, content, mode=mode)
    try:
        os.link(temporary, path)  # fails, unlike a move, if the name is taken
    finally:
        temporary.unlink()
