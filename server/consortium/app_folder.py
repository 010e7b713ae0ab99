"""Flower's app of the consortium: no code of its own, it names what is installed on both sides.

So the bundle that hospitals approve holds nothing but these names, and what runs in a hospital is
what that hospital has installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from common import templates
from common.errors import UsageError
from common.files import write_new
from server.consortium.folder import Folder

_PACKAGE = "server.consortium"
_SECONDS = 120


def write(folder: Folder, path: Path) -> Path:
    """The app's folder at ``path``, and the bundle that Flower makes of it, ``app.fab`` in it.

    Raises:
        UsageError: There is something, or it cannot be written.
    """
    values = {"name": folder.settings().name, "version": version("fedward")}
    try:
        path.mkdir(parents=True)
        for name in ("pyproject.toml", "README.md"):
            write_new(path / name, templates.render(_PACKAGE, f"app.{name}.j2", **values))
        bundle = _built(folder, path)
        write_new(path / "app.fab", bundle)
    except FileExistsError as error:
        raise UsageError(f"{path}: is there already; choose another folder") from error
    except OSError as error:
        raise UsageError(f"{error.filename or path}: {error.strerror}") from error
    return path / "app.fab"


def _built(folder: Folder, app: Path) -> bytes:
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("flwr")), "build", "--app", str(app.absolute())],
            cwd=work,
            env=folder.environment(os.environ),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        found = sorted(Path(work).glob("*.fab"))
        if done.returncode != 0 or len(found) != 1:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise UsageError(f"flwr build: {' '.join(last) or 'no bundle'}")
        return found[0].read_bytes()
