"""The runner forks for real: in a Python of its own, which has no threads of a test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import UsageError
from simulations.cli import app

RUNNER = """\
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
from client.agent.runner import Runner

out, *waiting = sys.argv[1:]
np.random.random()  # so that there is a state which a fork could inherit

class Tasks:
    def next_token(self):
        if waiting:
            return waiting.pop(0)
        while len(list(Path(out).glob("*.json"))) < 4:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        return None

    def close(self):
        pass

def run(token):
    if token == "breaks":
        raise RuntimeError("a task that breaks")
    sys.path.insert(0, str(Path(out) / "bundle"))
    import common
    said = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "draw": np.random.random(),
        "common": common.__file__,
        "ours": [n for n in sys.modules if n.startswith(("client.", "simulations"))],
        "flower": "flwr.supernode.runtime.run_clientapp" in sys.modules,
    }
    path = Path(out) / f"{token}.part"
    path.write_text(json.dumps(said))
    path.rename(path.with_suffix(".json"))
    if token == "hangs":
        time.sleep(600)
    if token == "exits":
        raise SystemExit(0)

Runner(Tasks(), run).work()
print("over")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Any]:
    """A runner that was given five tasks and then SIGTERM: what it said, what tasks wrote."""
    out = tmp_path_factory.mktemp("runner")
    brought = out / "bundle" / "common"
    brought.mkdir(parents=True)
    (brought / "__init__.py").write_text("")
    tokens = ("one", "breaks", "two", "hangs", "exits")
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUNNER, str(out), *tokens],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=out,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_each_task_has_a_process_of_its_own_and_one_that_breaks_harms_no_other(ran: Any) -> None:
    done, said = ran
    assert (done.returncode, done.stdout.strip()) == (0, "over"), done.stderr
    assert set(said) == {"one", "two", "hangs", "exits"}
    assert len({one["pid"] for one in said.values()}) == 4
    assert len({one["parent"] for one in said.values()}) == 1
    assert "RuntimeError: a task that breaks" in done.stderr


def test_flower_is_there_and_nothing_of_ours_so_a_bundle_gets_what_it_brought(ran: Any) -> None:
    for one in ran[1].values():
        assert one["flower"]
        assert one["ours"] == []
        assert Path(one["common"]).parts[-3:] == ("bundle", "common", "__init__.py")


def test_what_a_bundle_draws_differs_between_tasks(ran: Any) -> None:
    assert len({one["draw"] for one in ran[1].values()}) == 4


def test_a_task_that_hangs_ends_with_the_runner(ran: Any) -> None:
    assert not psutil.pid_exists(ran[1]["hangs"]["pid"])


def test_a_forked_process_need_import_nothing_but_ours() -> None:
    code = (
        "import importlib, sys\n"
        "from client.agent import runner\n"
        "for name in runner._WARM: importlib.import_module(name)\n"
        "runner.forget_ours()\n"
        "before = {name.partition('.')[0] for name in sys.modules} | runner._OURS\n"
        "import client.app, client.agent.forwarder\n"
        "print({name.partition('.')[0] for name in sys.modules} - before)\n"
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-P", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "False"]


def test_the_gate_is_on_loopback_or_is_refused() -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["site", "runner", "--gate", "192.0.2.1:9095"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == "--gate=192.0.2.1:9095: must be 127.0.0.1:PORT"
