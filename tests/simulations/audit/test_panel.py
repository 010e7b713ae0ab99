"""The panel of measured beside claimed privacy: nothing flattered, and red where it must be."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from simulations.audit.panel import panel, read_panel, render

RED = "stroke: var(--bad"


def strength(auc: float, width: float = 0.05) -> dict[str, Any]:
    return {
        "auc": auc,
        "auc_ci95": [auc - width, auc + width],
        "above_chance": auc - width > 0.5,
        "tpr_at_fpr": {
            "0.01": {"tpr": 0.2, "ci95": [0.1, 0.3], "false_positives": 1},
            "0.001": {"tpr": 0.05, "ci95": [0.01, 0.1], "false_positives": 0},
        },
    }


def site(claimed: float | None, bound: float, auc: float = 0.52) -> dict[str, Any]:
    return {
        "num_members": 100,
        "num_non_members": 200,
        "non_members": "study",
        "claim": {
            "epsilon": claimed,
            "delta": 1e-5,
            "unit": "patient",
            "accountant": "pld",
            "adjacency": "zero-out",
            "tpr_bound_at_fpr": {"0.01": 0.4567, "0.001": 0.2},
        },
        "attacks": {"loss": strength(auc - 0.01), "LiRA": strength(auc)},
        "control": strength(0.5),
        "proof": {
            "attack": "LiRA",
            "epsilon_lower_bound": bound,
            "tpr_at_least": 0.1,
            "fpr_at_most": 0.05,
            "confidence": 0.975,
            "passes_claim": claimed is not None and bound > claimed,
        },
    }


@pytest.fixture
def audit() -> dict[str, Any]:
    return {
        "schema": "fedward.audit/1",
        "created": "2026-01-01T00:00:00Z",
        "run": {
            "title": "a run",
            "weights_sha256": "0" * 64,
            "study": "phantom",
            "public": "nobody is in it",
            "rounds": 2,
            "noise_multiplier": 1.2,
            "sampling_rate": 0.25,
        },
        "epsilon_claimed": 8.0,
        "epsilon_lower_bound": 0.42,
        "confidence": 0.95,
        "passes_claim": False,
        "shadows": 16,
        "sites": {"site-1": site(7.991, 0.4291), "site-2": site(4.0, 0.1)},
        "engine": None,
        "seconds": 12.3,
    }


def engine(bound: float | None, *, passes: bool, noise: float = 1.2) -> dict[str, Any]:
    return {
        "epsilon_claimed": 8.0,
        "epsilon_lower_bound": bound,
        "confidence": 0.95,
        "passes_claim": passes,
        "delta": 1e-5,
        "unit": "patient",
        "accountant": "pld",
        "recipe": {"noise_multiplier": noise, "sampling_rate": 0.25},
    }


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_claims_are_rounded_up_and_bounds_down(audit: dict[str, Any]) -> None:
    first = panel(audit).gauges[0]
    assert (first.claim_words, first.bound_words) == ("at most 8.00", "at least 0.42")
    assert "45.7 %" in words(render(audit))  # what is allowed


def test_no_red_line_below_the_claim(audit: dict[str, Any]) -> None:
    page = render(audit)
    assert RED not in page
    assert "note bad" not in page
    assert "No claim refuted" in page
    assert [gauge.verdict for gauge in panel(audit).gauges] == ["not refuted"] * 2


def test_a_bound_above_the_claim_is_red_and_loud(audit: dict[str, Any]) -> None:
    audit["sites"]["site-2"] = site(1.0, 2.5, auc=0.9)
    page = render(audit)
    assert page.count(RED) == 1
    assert 'role="alert"' in page
    assert "Claim refuted" in page
    assert "What they prove passes a claim: that claim is wrong." in words(page)
    claim, bound = (panel(audit).gauges[1].x(value) for value in (1.0, 2.5))
    assert claim < bound


def test_the_engines_audit_stands_first_and_counts(audit: dict[str, Any]) -> None:
    audit["engine"] = engine(3.2, passes=False)
    found = panel(audit)
    assert [gauge.name for gauge in found.gauges] == ["engine", "site-1", "site-2"]
    assert not found.passes
    assert not found.other_recipe
    audit["engine"] = engine(None, passes=True)  # infinite
    assert panel(audit).passes
    assert RED in render(audit)


def test_an_engine_of_another_recipe_is_said(audit: dict[str, Any]) -> None:
    audit["engine"] = engine(3.2, passes=False, noise=3.0)
    assert "about that recipe" in render(audit)


def test_a_run_without_a_claim_is_not_called_sound(audit: dict[str, Any]) -> None:
    audit["sites"] = {"site-1": site(None, 2.5, auc=0.9)}
    found = panel(audit)
    assert found.gauges[0].claim_words == "infinite"
    assert found.gauges[0].verdict == "nothing is claimed"
    assert "better than guessing at 1 of 1 hospital:" in found.answer
    assert found.answer.endswith("No epsilon is claimed for this run.")


def test_chance_is_called_chance(audit: dict[str, Any]) -> None:
    assert panel(audit).answer.startswith("No attack on the released model")
    assert "not above chance" in render(audit)


def test_without_references_there_is_no_control(audit: dict[str, Any]) -> None:
    audit["shadows"] = 0
    for one in audit["sites"].values():
        one["control"] = None
        del one["attacks"]["LiRA"]
        one["proof"]["attack"] = "loss"
    assert "“Control”" not in render(audit)


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_planted_markup_stays_text(audit: dict[str, Any]) -> None:
    planted = copy.deepcopy(audit)
    planted["run"]["title"] = "<script>alert(1)</script>"
    planted["sites"] = {"<img src=x>": audit["sites"]["site-1"], "b": audit["sites"]["site-2"]}
    plain, strange = _Elements(), _Elements()
    plain.feed(render(audit))
    strange.feed(render(planted))
    assert strange.tags == plain.tags


def test_a_browser_shows_the_page_without_requests(
    audit: dict[str, Any], tmp_path: Path, browser: Callable[[Path], Any]
) -> None:
    audit["engine"] = engine(3.2, passes=False)
    page = tmp_path / "audit.html"
    page.write_text(render(audit))
    visit = browser(page)
    assert (visit.console, visit.requests) == ([], [])
    assert "Claimed and measured privacy" in visit.dom


def test_a_run_that_was_not_audited_has_no_panel(tmp_path: Path, audit: dict[str, Any]) -> None:
    assert read_panel(tmp_path) is None
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    assert read_panel(tmp_path) == panel(audit)


@pytest.mark.parametrize("text", ["{}", "[", '{"schema": "fedward.audit/1"}', '{"schema": "x"}'])
def test_a_broken_audit_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_panel(tmp_path)
    assert "\n" not in str(caught.value)
