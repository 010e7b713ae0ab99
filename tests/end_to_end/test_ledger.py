"""What patients were charged outlives a run: it is stopped and resumed, and followed by others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.privacy.accountants import build
from common.privacy.events import PoissonGaussianSteps

FEDWARD = Path(sys.executable).with_name("fedward")
SITES = ("hospital-1", "hospital-2", "hospital-3")


def fedward(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FEDWARD, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )


def stop_after(text: str, *arguments: str, cwd: Path) -> int:
    """Run ``fedward simulate`` until it says ``text``, then press Ctrl-C."""
    said = cwd / "said.txt"
    with said.open("w") as out:
        process = subprocess.Popen(
            [FEDWARD, "simulate", *arguments], cwd=cwd, stdout=out, stderr=out
        )
    deadline = time.monotonic() + 1800
    while text not in said.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"never said {text!r}: {said.read_text()}")
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    return process.wait(600)


def result_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def requests_of(ledgers: Path, cwd: Path) -> list[dict[str, Any]]:
    """Every request in every ledger, as the command tells it."""
    shown = fedward("ledger", "show", str(ledgers), "--json", cwd=cwd)
    assert shown.returncode == 0, shown.stderr
    return [one for ledger in json.loads(shown.stdout)["ledgers"] for one in ledger["requests"]]


def test_spend_goes_on_over_a_stopped_run_and_further_experiments(
    small: tuple[str, ...], tmp_path: Path
) -> None:
    ledgers = tmp_path / "ledgers"
    settings = (
        *small,
        "federation.rounds=2",
        "privacy.noise_multiplier=1.5",
        "privacy.delta=1e-5",
        f"simulation.ledger_dir={ledgers.relative_to(tmp_path)}",
    )

    def epsilon_after(rounds: int, rate: float) -> float:
        done = PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=1.5, steps=rounds)
        return build("pld").epsilon([done], 1e-5)

    first = tmp_path / "first"
    assert stop_after("round 1/2", *settings, f"run_dir={first}", cwd=tmp_path) == 130
    charged = requests_of(ledgers, tmp_path)
    assert {one["request_id"].partition("/")[2] for one in charged} >= {"1/train"}
    resumed = fedward("simulate", f"resume={first}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    result = result_of(first)
    rate = result["privacy"]["sampling_rate"]
    charged = requests_of(ledgers, tmp_path)
    assert sorted(one["request_id"].partition("/")[2] for one in charged) == (
        ["1/train"] * 3 + ["2/train"] * 3
    )
    for site in SITES:
        rounds = [record["sites"][site] for record in result["rounds"]]
        assert [one["epsilon"] for one in rounds] == pytest.approx(
            [epsilon_after(1, rate), epsilon_after(2, rate)]
        )
        assert rounds[0]["statement"]["length"] < rounds[1]["statement"]["length"]
        assert rounds[0]["statement"]["public_key"] == rounds[1]["statement"]["public_key"]
        spend = result["privacy"]["sites"][site]
        assert spend["epsilon"] == spend["epsilon_this_run"] == rounds[1]["epsilon"]
    assert not list((first / "ledger").glob("*.sqlite"))

    second = tmp_path / "second"
    again = fedward("simulate", *settings, "seed=43", f"run_dir={second}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    result = result_of(second)
    for site in SITES:
        rounds = [record["sites"][site] for record in result["rounds"]]
        assert [one["epsilon"] for one in rounds] == pytest.approx(
            [epsilon_after(3, rate), epsilon_after(4, rate)]
        )
        spend = result["privacy"]["sites"][site]
        assert spend["epsilon"] == pytest.approx(epsilon_after(4, rate))
        assert spend["epsilon_this_run"] == pytest.approx(epsilon_after(2, rate))

    third = tmp_path / "third"
    cap = epsilon_after(4, rate) + 0.01
    refused = fedward(
        "simulate", *settings, f"privacy.budget={cap}", f"run_dir={third}", cwd=tmp_path
    )
    assert refused.returncode == 4, refused.stderr
    result = result_of(third)
    assert result["state"] == "stopped-by-budget"
    assert [record["round"] for record in result["rounds"]] == [1]
    for site in SITES:
        answer = result["rounds"][0]["sites"][site]
        assert (answer["status"], answer["reason"]) == ("refused", "budget_exceeded")
        spend = result["privacy"]["sites"][site]
        assert spend["epsilon"] == pytest.approx(epsilon_after(4, rate))
        assert spend["epsilon_this_run"] == 0.0
    assert len(requests_of(ledgers, tmp_path)) == 12

    sound = fedward("ledger", "verify", str(ledgers), cwd=tmp_path)
    assert sound.returncode == 0, sound.stdout
    assert [line.partition("/")[0] for line in sound.stdout.splitlines()] == list(SITES)
