"""Which code a process has imported that stays while files change."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PACKAGES = ("client", "common", "configs", "server", "simulations")


def code_version() -> str:
    """Names the code of this installation as it lies on disk now."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            stat = path.stat()
            digest.update(f"{path} {stat.st_mtime_ns} {stat.st_size}\n".encode())
    return digest.hexdigest()[:12]
