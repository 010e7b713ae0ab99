"""Training on a device that is not the processor, in a process of its own.

Torch takes in a new device only before the first backward pass of a process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["stand_in", "training"])
def test_on_another_device(module: str) -> None:
    path = Path(__file__).with_name(f"{module}.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
