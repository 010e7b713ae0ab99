"""Each drill runs in a process of its own, because it makes that process adopt orphans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")

# The child starts a grandchild in a session of its own, which starts one more and ends; all that
# stay ignore SIGTERM. Each says its number in a file when it is ready.
STUBBORN = """
import os, signal, subprocess, sys, time
folder, depth, dies = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "dies"
if not dies:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if depth:
    rest = [folder, str(depth - 1), "dies" if depth == 2 else "stays"]
    subprocess.Popen([sys.executable, __file__, *rest], start_new_session=True)
with open(f"{folder}/.{os.getpid()}", "w") as file:
    file.write(str(depth))
os.rename(f"{folder}/.{os.getpid()}", f"{folder}/{os.getpid()}")
if not dies:
    time.sleep(600)
"""

DRILL = """
import json, os, pathlib, subprocess, sys, time
import psutil
from simulations.hosting.process_tree import adopt_orphans, end_descendants

folder, script, depth = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
adopt_orphans()
child = subprocess.Popen([sys.executable, script, str(folder), str(depth), "stays"])
while len(list(folder.glob("[0-9]*"))) <= depth:
    time.sleep(0.02)
pids = sorted(int(path.name) for path in folder.glob("[0-9]*"))
alive = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != "zombie"]
end_descendants(grace_seconds=0.3)
left = [process.pid for process in psutil.Process().children(recursive=True)]
print(json.dumps({"pids": pids, "alive": alive, "left": left}))
"""


# A worker of Ray's as it waits: it has its name, and hears nothing.
DEAF = """
import pathlib, subprocess, sys, time
from simulations.hosting.process_tree import adopt_orphans, end_descendants

folder, script = pathlib.Path(sys.argv[1]), sys.argv[2]
adopt_orphans()
words = [sys.argv[3], script, str(folder), "0", "stays", *sys.argv[4:]]
worker = subprocess.Popen(words, executable=sys.executable)
while not list(folder.glob("[0-9]*")):
    time.sleep(0.02)
end_descendants(grace_seconds=100_000)
print(worker.pid)
"""


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    path = tmp_path / "stubborn.py"
    path.write_text(textwrap.dedent(STUBBORN))
    return path


def drill(script: Path, depth: int) -> dict[str, Any]:
    folder = script.parent / "pids"
    folder.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", DRILL, str(folder), str(script), str(depth)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    try:
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)
    finally:
        for path in folder.glob("[0-9]*"):  # nothing may stay, whatever the drill did
            if psutil.pid_exists(int(path.name)):
                os.kill(int(path.name), 9)


def gone(pid: int) -> bool:
    """Ended and reaped: not even a zombie."""
    return not psutil.pid_exists(pid)


def test_a_child_that_ignores_sigterm_and_one_in_its_own_session_end(stubborn: Path) -> None:
    seen = drill(stubborn, 1)
    assert len(seen["pids"]) == len(seen["alive"]) == 2
    assert seen["left"] == []
    assert all(gone(pid) for pid in seen["pids"])


def test_an_orphan_whose_parent_has_ended_is_adopted_and_ends(stubborn: Path) -> None:
    seen = drill(stubborn, 2)
    assert len(seen["pids"]) == 3
    assert len(seen["alive"]) == 2
    assert seen["left"] == []
    assert all(gone(pid) for pid in seen["pids"])


def test_a_process_of_somebody_else_stays(stubborn: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        drill(stubborn, 1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_with_no_child_there_is_nothing_to_do() -> None:
    code = "from simulations.hosting.process_tree import end_descendants as e; e(); e()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=1200)


@pytest.mark.parametrize(
    "words",
    [("ray::Host",), (sys.executable, str(Path(ray.__file__).with_name("dashboard.py")))],
    ids=["worker", "program"],
)
def test_what_is_rays_is_not_waited_for(
    words: tuple[str, ...], stubborn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pids"
    folder.mkdir()
    command = [sys.executable, "-c", DEAF, str(folder), str(stubborn), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert gone(int(ended.stdout))
