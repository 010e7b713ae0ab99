"""What patients were charged outlives a run: it is stopped and resumed, and followed by others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.privacy.accountants import build
from common.privacy.events import PoissonGaussianSteps
from simulations.cli import app

SMALL = (
    "model.patch_size=32",
    "data.phantom.num_train_per_site=24",
    "data.phantom.num_val=12",
    "data.phantom.num_test=24",
    "federation.steps_per_round=1",
    "privacy.images_per_patient=1",
)
SITES = ("hospital-1", "hospital-2", "hospital-3")


def fedward(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def requests_of(ledgers: Path) -> list[dict[str, Any]]:
    """Every request in every ledger, as the command tells it."""
    shown = json.loads(fedward("ledger", "show", str(ledgers), "--json"))
    return [one for ledger in shown["ledgers"] for one in ledger["requests"]]


class Stopped(Exception):
    """What Ctrl-C does to a run, as far as its ledgers can see."""


def test_spend_goes_on_over_a_stopped_run_and_further_experiments(
    in_process: Any, tmp_path: Path
) -> None:
    ledgers = tmp_path / "ledgers"
    settings = (
        *SMALL,
        "federation.rounds=2",
        "privacy.noise_multiplier=1.5",
        "privacy.delta=1e-5",
        f"simulation.ledger_dir={ledgers}",
    )

    def epsilon_after(rounds: int, rate: float) -> float:
        done = PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=1.5, steps=rounds)
        return build("pld").epsilon([done], 1e-5)

    def stop_after_round_1(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            raise Stopped

    first = tmp_path / "first"
    with pytest.raises(Stopped):
        in_process(first, *settings, observe=stop_after_round_1)
    charged = requests_of(ledgers)
    assert {one["request_id"].partition("/")[2] for one in charged} >= {"1/train"}
    shutil.rmtree(first / "work")
    result = in_process(first, *settings)[-1]["result"]
    rate = result["privacy"]["sampling_rate"]
    charged = requests_of(ledgers)
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

    result = in_process(tmp_path / "second", *settings, "seed=43")[-1]["result"]
    for site in SITES:
        rounds = [record["sites"][site] for record in result["rounds"]]
        assert [one["epsilon"] for one in rounds] == pytest.approx(
            [epsilon_after(3, rate), epsilon_after(4, rate)]
        )
        spend = result["privacy"]["sites"][site]
        assert spend["epsilon"] == pytest.approx(epsilon_after(4, rate))
        assert spend["epsilon_this_run"] == pytest.approx(epsilon_after(2, rate))

    cap = f"privacy.budget={epsilon_after(4, rate) + 0.01}"
    result = in_process(tmp_path / "third", *settings, cap)[-1]["result"]
    assert result["state"] == "stopped-by-budget"
    assert [record["round"] for record in result["rounds"]] == [1]
    for site in SITES:
        answer = result["rounds"][0]["sites"][site]
        assert (answer["status"], answer["reason"]) == ("refused", "budget_exceeded")
        spend = result["privacy"]["sites"][site]
        assert spend["epsilon"] == pytest.approx(epsilon_after(4, rate))
        assert spend["epsilon_this_run"] == 0.0
    assert len(requests_of(ledgers)) == 12

    sound = fedward("ledger", "verify", str(ledgers))
    assert [line.partition("/")[0] for line in sound.splitlines()] == list(SITES)
