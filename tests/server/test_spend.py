from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Unit
from common.messages import Reason, Recipe, Status, TrainReply
from common.privacy.budget import Budget
from common.privacy.events import PoissonGaussianSteps
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
from common.privacy.statement import SpendStatement
from server.spend import SpendTracker

RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-5,
    sampling_rate=0.25,
    noise_multiplier=1.5,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=1,
    optimizer="adam",
    learning_rate=1e-3,
    physical_batch=8,
)
STEPS = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.5, steps=2)
KEY, OTHER_KEY = SiteKey(bytes(32)), SiteKey(bytes([1] * 32))


def said(path: Path, rounds: int, budget: Budget | None = None, **about: Any) -> dict[str, Any]:
    """The statement of a real ledger after so many committed rounds."""
    budget = budget or Budget(epsilon=50.0, delta=1e-5, accountant="rdp")
    with Ledger.open(path, **{"cohort": "c", "key": KEY, "unit": budget.unit, **about}) as ledger:
        for number in range(1, rounds + 1):
            request_id = f"run/{number}"
            ledger.reserve(request_id=request_id, events=[STEPS], purpose="t", budget=budget)
            ledger.commit(request_id)
        # Over the wire and back.
        return json.loads(json.dumps(ledger.statement(budget).to_dict()))


def reply(spend: dict[str, Any] | None, status: Status = Status.trained) -> TrainReply:
    refused = status is Status.refused
    return TrainReply(
        site="site-1",
        status=status,
        num_patients=9,
        reason=Reason.budget_exceeded if refused else None,
        spend=spend,
        weights=None if refused else {"w": np.zeros(1, np.float32)},
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "site.sqlite"


def test_statements_of_a_growing_ledger_are_taken(ledger: Path) -> None:
    tracker = SpendTracker([])
    for rounds in (1, 2, 5):
        assert tracker.take(reply(said(ledger, rounds)), RECIPE) == ()
    assert tracker.take(reply(said(ledger, 5), Status.refused), RECIPE) == ()


def test_a_site_that_enrolled_signs_with_that_key_or_not_at_all(ledger: Path) -> None:
    spend = said(ledger, 1)
    stranger = SpendTracker([], {"site-1": "00" * 32})
    assert stranger.take(reply(spend), RECIPE) == ("public_key: not the key this site is known by",)
    known = SpendTracker([], {reply(spend).site: spend["public_key"], "site-9": "00" * 32})
    assert known.take(reply(spend), RECIPE) == ()


def test_only_a_reply_without_training_may_lack_a_statement() -> None:
    tracker = SpendTracker([])
    assert tracker.take(reply(None, Status.refused), RECIPE) == ()
    assert tracker.take(reply(None), RECIPE) == ("statement: missing",)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.001, "epsilon_committed": 0.001},
        {"signature": "00"},
        {"signature": 7},
        {"delta": "nan"},
        {"epsilon": 10**400},
        {"length": -1},
        {"unit": ["patient"]},
        {"private": False},
    ],
)
def test_a_changed_statement_is_a_problem_and_changes_nothing(
    change: dict[str, Any], ledger: Path
) -> None:
    tracker = SpendTracker([])
    first, second = said(ledger, 1), said(ledger, 2)
    assert tracker.take(reply(first), RECIPE) == ()
    assert tracker.take(reply({**second, **change}), RECIPE)
    assert tracker.take(reply({}), RECIPE)
    assert tracker.take(reply(second), RECIPE) == ()


def test_a_ledger_set_back_is_found_until_it_is_past_where_it_was(
    ledger: Path, tmp_path: Path
) -> None:
    tracker = SpendTracker([])
    assert tracker.take(reply(said(ledger, 3)), RECIPE) == ()
    # The same site, an earlier copy of the file and head.
    copy = tmp_path / "copy" / "site.sqlite"
    problems = tracker.take(reply(said(copy, 1)), RECIPE)
    assert any(problem.startswith("length: went back") for problem in problems)
    assert "epsilon_committed: went back" in problems
    # Set back and overtaken by one more round, it has the old length under another head.
    assert tracker.take(reply(said(copy, 3)), RECIPE)
    assert tracker.take(reply(said(copy, 3), Status.refused), RECIPE) == (
        "head: the ledger's history was rewritten",
    )


def test_a_training_that_left_no_row_is_found(ledger: Path) -> None:
    tracker = SpendTracker([])
    spend = said(ledger, 1)
    assert tracker.take(reply(spend), RECIPE) == ()
    assert tracker.take(reply(spend), RECIPE) == ("length: this round left no row in the ledger",)


def test_the_first_key_is_pinned(ledger: Path, tmp_path: Path) -> None:
    tracker = SpendTracker([])
    assert tracker.take(reply(said(ledger, 1)), RECIPE) == ()
    other = said(tmp_path / "other.sqlite", 2, key=OTHER_KEY)
    assert tracker.take(reply(other), RECIPE) == ("public_key: not the key this site is known by",)


def test_the_measure_is_the_one_asked_for_and_stays(ledger: Path, tmp_path: Path) -> None:
    easy = Budget(epsilon=50.0, delta=1e-2, accountant="rdp")
    assert SpendTracker([]).take(reply(said(ledger, 1, easy)), RECIPE) == (
        "delta: larger than asked for",
    )
    by_image = Budget(epsilon=50.0, delta=1e-5, accountant="rdp", unit=Unit.image)
    assert SpendTracker([]).take(reply(said(tmp_path / "i.sqlite", 1, by_image)), RECIPE) == (
        "unit: not the one asked for",
    )
    tracker = SpendTracker([])
    strict = Budget(epsilon=50.0, delta=1e-6, accountant="rdp")
    assert tracker.take(reply(said(ledger, 1, strict)), RECIPE) == ()
    assert tracker.take(reply(said(ledger, 2)), RECIPE) == (
        "delta, accountant: not those of the statement before",
    )
    pld = replace(strict, accountant="pld")
    assert tracker.take(reply(said(ledger, 3, pld)), RECIPE) == (
        "delta, accountant: not those of the statement before",
    )


def test_statements_are_remembered_in_the_rounds(ledger: Path) -> None:
    first = said(ledger, 2)
    history = [
        {"round": 1, "sites": {"site-1": {"statement": first}, "site-2": {"statement": None}}},
        {"round": 2, "sites": {"site-1": {"status": "failed"}}},
    ]
    tracker = SpendTracker(history)
    assert tracker.take(reply(first), RECIPE) == ("length: this round left no row in the ledger",)
    assert tracker.take(reply(said(ledger, 3)), RECIPE) == ()
    assert SpendStatement.from_dict(first).num_events == 2
