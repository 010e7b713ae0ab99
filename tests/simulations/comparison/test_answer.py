"""What the top of the page says, for differences of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.comparison.answer import answer, tiles

Ends = tuple[float, float] | None


def cell(arm: str, epsilon: float | None, *, leaks: bool = False) -> dict[str, Any]:
    spent = None if leaks else epsilon
    return {"arm": arm, "augment": "none", "epsilon": epsilon, "privacy": {"epsilon": spent}}


def about(
    what: str, arm: str, epsilon: float | None, value: float, ends: Ends = None
) -> dict[str, Any]:
    evidence = None if ends is None else {"ci95": list(ends)}
    return {
        "about": what,
        "a": {"arm": arm, "augment": "none", "epsilon": epsilon},
        "figures": {
            "auroc": {"value": value, "patients": evidence, "patients_and_seeds": None},
        },
    }


def told(*differences: dict[str, Any], leaks: bool = False) -> dict[str, Any]:
    epsilons = [1.0, 20.0, None]
    return {
        "cells": [cell("federated", epsilon, leaks=leaks) for epsilon in epsilons],
        "differences": list(differences),
    }


def said(comparison: dict[str, Any]) -> str:
    return answer(comparison).replace("\u00a0", " ").replace("\u2212", "-")


def test_a_clear_price_and_one_that_cannot_be_told() -> None:
    comparison = told(
        about("privacy", "federated", 1.0, -0.1234, (-0.2, -0.05)),
        about("privacy", "federated", 20.0, -0.01, (-0.06, 0.04)),
    )
    assert said(comparison) == (
        "What privacy costs the federation: at epsilon 1 it is 0.12 AUROC (95 % interval 0.05 to "
        "0.20); at epsilon 20 no difference to training without privacy can be told (-0.01, 95 % "
        "interval -0.06 to +0.04)."
    )


def test_an_interval_that_touches_zero_is_no_difference() -> None:
    assert "no difference to training without privacy can be told" in said(
        told(about("privacy", "federated", 1.0, -0.1, (-0.2, 0.0)))
    )
    assert "no difference to training without privacy can be told" in said(
        told(about("privacy", "federated", 1.0, -0.1))
    )


def test_privacy_that_costs_nothing_is_not_turned_into_a_price() -> None:
    text = said(told(about("privacy", "federated", 1.0, 0.1, (0.05, 0.2))))
    assert "at epsilon 1 nothing: with it the model is better by 0.10 AUROC" in text
    assert "(95 % interval 0.05 to 0.20)" in text


@pytest.mark.parametrize(
    ("value", "ends", "words"),
    [
        (-0.1, (-0.2, -0.05), "collaboration gives back 0.10 AUROC (95 % interval 0.05 to 0.20)"),
        (0.1, (0.05, 0.2), "a hospital alone is better than the federation by 0.10 AUROC"),
        (-0.1, (-0.2, 0.05), "no difference between the federation and a hospital alone can be"),
    ],
)
def test_what_collaboration_gives_back(value: float, ends: Ends, words: str) -> None:
    assert words in said(told(about("alone", "local", 1.0, value, ends)))


@pytest.mark.parametrize(
    ("value", "ends", "words"),
    [
        (-0.1, (-0.2, -0.05), "the federation misses 0.10 AUROC (95 % interval 0.05 to 0.20) to"),
        (0.1, (0.05, 0.2), "the federation is above training in one place by 0.10 AUROC"),
        (0.1, (-0.05, 0.2), "no difference between the federation and training in one place can"),
    ],
)
def test_what_the_federation_misses(value: float, ends: Ends, words: str) -> None:
    assert words in said(told(about("federation", "federated", 1.0, value, ends)))


def test_an_end_near_zero_is_not_rounded_to_it() -> None:
    text = said(told(about("privacy", "federated", 1.0, -0.06, (-0.12, -0.003))))
    assert "0.060 AUROC (95 % interval 0.003 to 0.120)" in text


def test_an_epsilon_that_does_not_hold_is_called_claimed() -> None:
    comparison = told(about("privacy", "federated", 1.0, -0.1, (-0.2, -0.05)), leaks=True)
    assert "at epsilon 1 (claimed only, honestly infinite) it is" in said(comparison)


def test_without_differences_nothing_is_claimed() -> None:
    assert "nothing to compare" in said({"cells": [], "differences": []})
    assert tiles({"cells": [], "differences": []}) == []
    assert "no two ways of training" in said(told())


def test_tiles_speak_of_the_smallest_epsilon_and_beside_it_of_none() -> None:
    found = tiles(
        told(
            about("privacy", "federated", 1.0, -0.1, (-0.2, -0.05)),
            about("alone", "local", 1.0, -0.08, (-0.2, -0.05)),
            about("alone", "local", None, 0.01, (-0.05, 0.2)),
        )
    )
    assert [tile.figure for tile in found] == ["\u22120.10", "+0.08"]
    assert found[0].question == "Privacy: epsilon 1 against none"
    beside = found[1].beside.replace("\u00a0", " ").replace("\u2212", "-")
    assert beside == (
        "AUROC, 95 % interval +0.05 to +0.20. Without privacy -0.01, 95 % interval -0.20 to +0.05; "
        "no difference can be told"
    )
