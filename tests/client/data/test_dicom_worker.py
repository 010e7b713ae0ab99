from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.data.dicom import read_dicom
from client.data.dicom_decoder import shared_decoder


def _run(code: str) -> subprocess.CompletedProcess[str]:
    start = "from client.data.dicom_worker import _limit, _open_limits\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, check=False
    )


def test_memory_beyond_the_limit_is_not_given() -> None:
    # 8 x 1 MiB and a floor of 16 MiB
    assert _run("_limit(memory=1 << 20, seconds=9); bytearray(20 << 20)").returncode == 0
    done = _run("_limit(memory=1 << 20, seconds=9); bytearray(32 << 20)")
    assert "MemoryError" in done.stderr
    lifted = "with _open_limits(): _limit(memory=1 << 20, seconds=9)\nbytearray(32 << 20)"
    assert _run(lifted).returncode == 0


@pytest.mark.parametrize("seconds", [0, 1])
def test_time_beyond_the_limit_ends_the_process(seconds: int) -> None:
    done = _run(f"_limit(memory=1 << 20, seconds={seconds})\nwhile True: pass")
    assert done.returncode == -signal.SIGXCPU


def test_the_child_writes_no_file_and_no_core(write_dicom: Callable[..., Path]) -> None:
    read_dicom(write_dicom())
    limits = Path(f"/proc/{shared_decoder().pid}/limits").read_text(encoding="ascii")
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
    assert rows["Max file size"] == ["0", "0"]
    assert rows["Max core file size"] == ["0", "0"]
