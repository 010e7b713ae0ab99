"""Ray on this machine that outlives commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from common.errors import RunFailed, UsageError
from simulations.hosting.child import QUIET

_END_SECONDS = 10.0


def folder() -> Path:
    """This user's alone; Ray opens its own folder inside to everybody. Ray wants a short path."""
    return Path(tempfile.gettempdir()) / f"fedward-ray-{os.getuid()}"


def _ray_dir() -> Path:
    """Where Ray keeps its sockets and its address."""
    return folder() / "ray"


def _address() -> Path:
    return _ray_dir() / "ray_current_cluster"


def address_here() -> str | None:
    """Of the Ray that `start` started, if it still runs.

    Raises:
        UsageError: if somebody else could have written it: whoever connects runs their code.
    """
    if folder().exists():
        _check_own()
    return _address().read_text().strip() if _address().is_file() and processes() else None


def _check_own() -> None:
    stat = folder().lstat()
    if not folder().is_dir() or folder().is_symlink() or stat.st_uid != os.getuid():
        raise UsageError(f"{folder()}: not a folder of this user; remove it")
    if stat.st_mode & 0o022:
        raise UsageError(f"{folder()}: others may write there; remove it")


def start(*, num_cpus: int, num_gpus: int | None) -> str:
    """Start Ray for this user, with the GPUs that are found unless told; returns its address.

    Raises:
        UsageError: if it runs already.
        RunFailed: if it does not come up.
    """
    running = address_here()
    if running is not None:
        raise UsageError(f"Ray runs already at {running}; fedward ray stop ends it")
    folder().mkdir(mode=0o700, exist_ok=True)
    _check_own()
    command = [
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--port=0"),
        *("--include-dashboard=false", "--disable-usage-stats"),
        *(f"--num-cpus={num_cpus}", f"--temp-dir={_ray_dir()}"),
        *([] if num_gpus is None else [f"--num-gpus={num_gpus}"]),
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
    _address().unlink(missing_ok=True)
    return len(found)


def processes() -> list[psutil.Process]:
    """Ray's own of this user, and those that they started."""
    mark, found = str(folder()), dict[int, psutil.Process]()
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = process.uids().real == os.getuid() and any("/ray/" in w for w in words)
            if ours and any(mark in word for word in words):
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for pid, process in found.items() if pid != os.getpid()]
