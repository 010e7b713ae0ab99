"""The card that travels with the weights: of a real small run, and of what it may become."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.report.model_card import render

Result = dict[str, Any]
TINY = (
    "model=test_vit",
    "data.image_size=32",
    "data.phantom.size=32",
    "data.phantom.num_train_per_site=8",
    "data.phantom.num_val=8",
    "data.phantom.num_test=24",
    "federation.num_sites=2",
    "federation.rounds=1",
    "federation.steps_per_round=2",
)


def table_rows(card: str) -> dict[str, str]:
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: " | ".join(row[1:]) for row in rows}


@pytest.fixture
def done(in_process: Callable[..., Any], tmp_path: Path) -> tuple[Result, str]:
    """A private run of two hospitals on phantoms: its result, and the card that it left."""
    in_process(tmp_path / "run", *TINY)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    return result, (tmp_path / "run" / "model_card.md").read_text()


def test_a_run_leaves_a_card_that_agrees_with_its_result(done: tuple[Result, str]) -> None:
    result, card = done
    assert card == render(result)
    rows = table_rows(card)
    assert rows["SHA-256"] == f"`{result['final']['weights_sha256']}`"
    test, privacy = result["final"]["test"], result["privacy"]
    low, high = test["auroc_ci95"]
    assert rows["AUROC, malignant"] == f"{test['auroc']:.3f} ({low:.3f} to {high:.3f})"
    assert rows["unit"] == privacy["unit"] == "patient"
    assert rows["accountant"] == f"PLD, {privacy['accountant_version']}"
    assert rows["sampler"].startswith("poisson, rate ")
    for name, spend in privacy["sites"].items():
        cells = rows[name].split(" | ")
        assert float(cells[0]) >= spend["epsilon"] > 0
        bounds = [spend["tpr_bound_at_fpr"][rate] for rate in ("0.01", "0.001")]
        shown = [float(cell.removesuffix(" %")) / 100 for cell in cells[-2:]]
        assert all(bound <= one <= bound + 0.0011 for bound, one in zip(bounds, shown, strict=True))
    for words in (
        "it is no medical device",
        "## Privacy statement",
        "at 1 % false alarms",
        "Tuning is not charged",
        "its seeds are known",
        "every hospital's phantoms",
    ):
        assert words in card
    check_what_it_may_become(result)


def check_what_it_may_become(result: Result) -> None:
    """The same run with other facts; a real run for each would say no more."""
    plain = copy.deepcopy(result)
    plain["privacy"] |= {"private": False, "mechanism": "none", "epsilon_federation": None}
    card = render(plain)
    assert "**Not private.** Epsilon is infinite" in card
    assert "no clipping, no noise" in card
    assert "Epsilon ≤" not in card
    assert "false alarms |" not in card

    leaking = copy.deepcopy(result)
    made = {"kind": "not_private", "reason": "a generator | <b>", "epsilon": None, "studies": []}
    leaking["privacy"] |= {"private": False, "epsilon_federation": None}
    leaking["synthetic"] = {
        "use": "mix",
        "num_images": 7,
        "concerns_these_patients": True,
        "epsilon_claimed_without_them": 7.991,
        "provenance": made,
    }
    card = render(leaking)
    assert "**Not private.**" in card
    assert "Training alone would claim epsilon ≤ 8.00" in card
    assert (
        "7 synthetic images (mix): made WITHOUT privacy (a generator \\| &lt;b&gt;); from these"
    ) in card

    by_image = copy.deepcopy(result)
    by_image["privacy"]["unit"] = "image"
    assert "Image level: this epsilon hides one image." in render(by_image)

    trusting = copy.deepcopy(result)
    trusting["privacy"]["trust"] = "secure_aggregation"
    for spend in trusting["privacy"]["sites"].values():
        spend["epsilon_alone"] = 40.811
    card = render(trusting)
    assert "hospital's update alone epsilon would be ≤ 40.82." in card
    assert "secure aggregation: noise is shared" in card
    assert "secure" not in render(result)

    failed = copy.deepcopy(result) | {"final": None}
    with pytest.raises(ValueError, match="without a final model"):
        render(failed)


def test_groups_with_too_few_patients_say_so(done: tuple[Result, str]) -> None:
    result, card = done
    assert "The study names no groups" in card
    few = {"value": None, "ci95": None, "unsaid": "too_few_patients"}
    names = ("auroc", "accuracy", "false_negative_rate", "false_positive_rate", "spd", "ece")
    group: Result = {"value": "F", "num_patients": 3} | dict.fromkeys(names, few)
    gaps = dict.fromkeys(("auroc", "false_negative_rate", "equalised_odds"), few)
    column: Result = {"mean": None, "labels": [{"groups": [group], "gaps": gaps}]}
    result["final"]["test"]["fairness"] = {"sex": column}
    rows = table_rows(render(result))
    assert rows["F"] == " | ".join(["3", *["too few patients to say"] * 5])
