"""Ray on this machine that outlives commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from common.errors import RunFailed, UsageError
from simulations.child import QUIET

_END_SECONDS = 10.0


def folder() -> Path:
    """Where this user's Ray keeps its sockets and its address; Ray wants a short path."""
    return Path(tempfile.gettempdir()) / f"fedward-ray-{os.getuid()}"


def address_here() -> str | None:
    """Of the Ray that `start` started, if it still runs."""
    path = folder() / "ray_current_cluster"
    return path.read_text().strip() if path.is_file() and processes() else None


def start(*, num_cpus: int, num_gpus: int) -> str:
    """Start Ray for this user; returns its address.

    Raises:
        UsageError: if it runs already.
        RunFailed: if it does not come up.
    """
    running = address_here()
    if running is not None:
        raise UsageError(f"Ray runs already at {running}; fedward ray stop ends it")
    folder().mkdir(mode=0o700, exist_ok=True)
    command = [
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--port=0"),
        *("--include-dashboard=false", "--disable-usage-stats"),
        *(f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}", f"--temp-dir={folder()}"),
    ]
    done = subprocess.run(
        command,
        cwd=folder(),
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    found = address_here()
    if done.returncode or found is None:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise RunFailed(f"Ray did not start: {words[-1] if words else 'without a word'}")
    return found


def stop() -> int:
    """End this user's Ray, and nothing else; returns how many processes that were."""
    found = processes()
    for process in found:
        process.terminate()
    _, left = psutil.wait_procs(found, timeout=_END_SECONDS)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=_END_SECONDS)
    (folder() / "ray_current_cluster").unlink(missing_ok=True)
    return len(found)


def processes() -> list[psutil.Process]:
    """Ray's own of this user, and those that they started."""
    mark, found = str(folder()), dict[int, psutil.Process]()
    for process in psutil.process_iter():
        try:
            if any(mark in word for word in process.cmdline()):
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for pid, process in found.items() if pid != os.getpid()]
