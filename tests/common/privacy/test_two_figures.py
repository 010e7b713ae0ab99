"""Spend under the stated trust and without it, in ledger, statement and caps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BudgetExceeded
from common.privacy.budget import Budget
from common.privacy.events import PoissonGaussianSteps, SummedDiscreteGaussianSteps, alone
from common.privacy.ledger import Ledger
from common.privacy.statement import SpendStatement, check_statement

SUMS = SummedDiscreteGaussianSteps(
    sampling_rate=0.25, clip=65536, num_weights=100, share_std=65536, num_shares=9, steps=1
)
LOCAL = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=3.0, steps=1)
BUDGET = Budget(epsilon=100.0, delta=1e-5)


def _statement(path: Path, *events: object) -> SpendStatement:
    with Ledger.open(path / "site.sqlite", cohort="c") as ledger:
        for number, event in enumerate(events):
            ledger.reserve(request_id=str(number), events=[event], purpose="x", budget=BUDGET)  # pyright: ignore[reportArgumentType]
            ledger.commit(str(number))
    with Ledger.open(path / "site.sqlite", cohort="c") as ledger:
        return ledger.statement(BUDGET)


def test_a_ledger_tells_both_figures_also_when_it_is_opened_again(tmp_path: Path) -> None:
    statement = _statement(tmp_path, SUMS, LOCAL)
    assert statement.epsilon == BUDGET.spent([SUMS, LOCAL])
    assert statement.epsilon_alone == BUDGET.spent([alone(SUMS), LOCAL])
    assert statement.epsilon_alone > 2 * statement.epsilon
    assert check_statement(statement) == ()
    assert SpendStatement.from_dict(statement.to_dict()) == statement


def test_statements_without_shared_noise_keep_their_form(tmp_path: Path) -> None:
    statement = _statement(tmp_path, LOCAL)
    assert statement.epsilon_alone is None
    assert "epsilon_alone" not in statement.to_dict()


def test_the_second_figure_is_signed_and_cannot_be_too_small(tmp_path: Path) -> None:
    statement = _statement(tmp_path, SUMS)
    for changed in (None, 0.01, math.inf):
        problems = check_statement(replace(statement, epsilon_alone=changed))
        assert "signature: does not fit the statement" in problems
    small = check_statement(replace(statement, epsilon_alone=0.01))
    assert any(problem.startswith("epsilon_alone") for problem in small)
    assert (
        SpendStatement.from_dict(replace(statement, epsilon_alone=math.inf).to_dict()).epsilon_alone
        == math.inf
    )


def test_each_cap_is_held(tmp_path: Path) -> None:
    spent, without = BUDGET.spent([SUMS]), BUDGET.spent_alone([SUMS])
    assert without > 2 * spent
    assert Budget(epsilon=spent, delta=1e-5, epsilon_alone=without).allows([SUMS])
    assert not Budget(epsilon=spent * 0.99, delta=1e-5).allows([SUMS])
    tight = Budget(epsilon=spent, delta=1e-5, epsilon_alone=without * 0.99)
    assert not tight.allows([SUMS])
    with Ledger.open(tmp_path / "site.sqlite", cohort="c") as ledger:
        with pytest.raises(BudgetExceeded, match="without trust in other sites"):
            ledger.reserve(request_id="1", events=[SUMS], purpose="x", budget=tight)
        assert ledger.entries() == ()


def test_a_cap_without_trust_is_above_zero() -> None:
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="epsilon_alone"):
            Budget(epsilon=1.0, delta=1e-5, epsilon_alone=bad)
