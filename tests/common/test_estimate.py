"""Figures that must not be leant on say so."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from common.estimate import Estimate, Support, Unsaid

DRAWS = np.linspace(0.4, 0.6, 1001)


def test_an_interval_holds_the_middle_95_of_100_redraws() -> None:
    found = Estimate.of(0.5, np.append(DRAWS, math.nan))
    assert found.ci95 == pytest.approx((0.405, 0.595))
    assert found.unsaid is None


@pytest.mark.parametrize(
    ("value", "draws", "why"),
    [
        (math.nan, DRAWS, Unsaid.not_measured),
        (0.0, np.zeros(1000), Unsaid.no_spread),
        (0.5, np.full(1000, math.nan), Unsaid.no_spread),
        (0.5, np.linspace(0.2, 0.8, 1000), Unsaid.interval_too_wide),
        (0.3, DRAWS, Unsaid.mostly_chance),
        (0.7, DRAWS, Unsaid.mostly_chance),
    ],
)
def test_doubts(value: float, draws: np.ndarray, why: Unsaid) -> None:
    found = Estimate.of(value, draws)
    assert found.unsaid is why
    assert (found.value is None) == math.isnan(value)
    assert (found.ci95 is None) == (why in {Unsaid.not_measured, Unsaid.no_spread})
    json.dumps(found.to_dict(), allow_nan=False)


def test_too_few_patients_come_before_other_doubts() -> None:
    few = Unsaid.too_few_patients
    for value, draws in ((math.nan, DRAWS), (0.0, np.zeros(9)), (0.3, DRAWS), (0.5, DRAWS)):
        assert Estimate.of(value, draws, few=few).unsaid is few
    assert Estimate.of(0.5, DRAWS, few=few).value == 0.5


def test_patients_are_counted_once_and_on_both_sides() -> None:
    answers = np.array([1, 1, 0, 0, -1, 1, 0])
    patients = np.array([0, 0, 0, 1, 2, 3, 3])
    assert Support.of(answers, patients) == Support(
        num_images=6, num_patients=3, num_with=2, num_without=3
    )


@pytest.mark.parametrize(
    ("num_patients", "num_with", "num_without", "any_side", "both_sides"),
    [
        (20, 10, 10, None, None),
        (19, 19, 19, Unsaid.too_few_patients, Unsaid.too_few_patients),
        (90, 9, 9, None, Unsaid.too_few_with_label),
        (90, 10, 9, None, Unsaid.too_few_without_label),
    ],
)
def test_the_rule(
    num_patients: int,
    num_with: int,
    num_without: int,
    any_side: Unsaid | None,
    both_sides: Unsaid | None,
) -> None:
    support = Support(
        num_images=99, num_patients=num_patients, num_with=num_with, num_without=num_without
    )
    assert support.too_few(both_sides=False) is any_side
    assert support.too_few(both_sides=True) is both_sides
