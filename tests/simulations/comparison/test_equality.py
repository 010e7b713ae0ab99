"""What is equal in all arms, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from common.config import Config
from simulations.comparison.equality import equality
from simulations.comparison.measured import Measured
from simulations.comparison.plan import Plan
from simulations.comparison.survey import Survey

Make = Callable[..., Measured]


def told(*found: Measured) -> dict[str, Any]:
    survey = Survey(sites={"a": 4, "b": 5}, num_images=20, delta=1e-5)
    plan = Plan(survey=survey, config=Config(), trials=tuple(one.trial for one in found))
    return equality(plan, found)


def test_equal_arms_need_no_remark(make_measured: Make) -> None:
    facts = told(make_measured(), make_measured("centralized", epsilon=8.0))
    assert facts["remarks"] == []
    assert facts["num_test_patients"] == 60
    assert facts["num_train_patients"] == 9
    assert facts["steps"] == [5]
    assert (facts["unit"], facts["delta"], facts["accountant"]) == ("patient", 1e-5, "pld")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps_per_round": 6}, "numbers of steps: federated 5, centralized 6"),
        ({"sites": {"a": {"num_patients": 8}}}, "training patients: federated 9, centralized 8"),
        ({"epsilon": 8.0, "epsilon_federation": 5.0}, "did not spend the epsilon"),
        ({"epsilon": 8.0, "epsilon_federation": 8.1}, "did not spend the epsilon"),
        ({"epsilon": 8.0, "private": False}, "the epsilon of these models is infinite"),
    ],
)
def test_what_differs_is_said(change: dict[str, Any], says: str, make_measured: Make) -> None:
    (remark,) = told(make_measured(), make_measured("centralized", **change))["remarks"]
    assert says in remark


def test_other_ends_and_versions_are_said(make_measured: Make) -> None:
    one, other = make_measured(), make_measured("centralized")
    other.result["state"] = "stopped-by-budget"
    other.result["versions"] = {"python": "3.12"}
    ended, versions = told(one, other)["remarks"]
    assert ended == "1 trials ended as stopped-by-budget: centralized epsilon inf seed 1."
    assert "different versions of python" in versions


def test_alone_is_tested_on_everybody(make_measured: Make) -> None:
    (remark,) = told(make_measured(), make_measured("local", site="a"))["remarks"]
    assert "tested on the patients of all" in remark
