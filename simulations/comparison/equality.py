"""What is equal in all arms, and in words what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from common.config import AugmentMode, TunedOn
from simulations.comparison.measured import Measured
from simulations.comparison.plan import Plan
from simulations.comparison.request import Kind
from simulations.comparison.tuning import Tuning

# An epsilon is calibrated from below: to a tenth of a percent, and coarser for a few steps.
_REACHED = 0.95


def equality(plan: Plan, found: Sequence[Measured], tuning: Tuning | None = None) -> dict[str, Any]:
    """What the comparison holds equal, read from the results.

    `check_comparable` has refused other test sets and other meanings of epsilon before.
    """
    first = found[0]
    test_set = first.predictions.test_set
    scored = first.predictions.scored
    return {
        "test_set": test_set.to_dict(),
        "num_test_patients": scored.num_patients,
        "num_test_images": len(scored.labels),
        "num_train_patients": sum(plan.survey.sites.values()),
        "steps": sorted({one.steps for one in found}),
        **{
            name: first.result["privacy"][name]
            for name in ("unit", "delta", "accountant", "accountant_version", "adjacency")
        },
        "tuning": _given(found) if tuning is None else _tuned(tuning),
        "remarks": [*_remarks(plan, found)],
    }


def _given(found: Sequence[Measured]) -> str:
    text = (
        "Every arm was run with the settings it was given, once for each seed; the comparison "
        "searched for no better ones in any arm."
    )
    told = {one.trial.config.privacy.tuned_on for one in found} - {None}
    for on in sorted(one.value for one in told if one is not None):
        text += f" It was stated that settings had been chosen on {on} data before."
    if TunedOn.private in told:
        text += " What that choice cost its patients is in no epsilon here."
    return text


def _tuned(tuning: Tuning) -> str:
    facts = tuning.to_dict()
    text = (
        f"Every arm was offered the same {facts['num_candidates']} settings at every epsilon and "
        "took the best by validation AUROC of one run each, without synthetic images"
    )
    if tuning.search.private:
        return (
            f"{text}, on the compared patients themselves. The honest epsilon of a run holds all "
            "runs that chose its settings."
        )
    return (
        f"{text}, on {facts['study']} ({facts['num_train_patients']} training patients; "
        f"{facts['public']}). The compared patients decided nothing."
    )


def _remarks(plan: Plan, found: Sequence[Measured]) -> list[str]:
    remarks: list[str] = []
    asked = [
        one
        for one in found
        if one.trial.config.augment.mode is not AugmentMode.pretrain  # asks no hospital
    ]
    steps = {one.steps for one in asked}
    if len(steps) > 1:
        remarks.append(
            f"The arms took different numbers of steps: {_by_arm(asked, lambda one: one.steps)}."
        )
    together = [one for one in found if one.trial.kind is not Kind.local]
    if len({one.num_patients for one in together}) > 1:
        told = _by_arm(together, lambda one: one.num_patients)
        remarks.append(f"The arms have different numbers of training patients: {told}.")
    for state in sorted({one.result["state"] for one in found} - {"completed"}):
        these = [one.trial.title for one in found if one.result["state"] == state]
        remarks.append(f"{len(these)} trials ended as {state}: {_some(these)}.")
    short = [one.trial.title for one in asked if _falls_short(one)]
    if short:
        remarks.append(
            f"{len(short)} trials did not spend the epsilon that was asked for: {_some(short)}."
        )
    versions = {tuple(sorted(one.result["versions"].items())) for one in found}
    if len(versions) > 1:
        changed = {
            name
            for some in versions
            for name, _ in set(some) - set.intersection(*map(set, versions))
        }
        remarks.append(f"Trials ran with different versions of {', '.join(sorted(changed))}.")
    remarks += _about_synthetic(found)
    if len(plan.survey.sites) > 1 and any(one.trial.kind is Kind.local for one in found):
        remarks.append(
            "A hospital alone is tested on the patients of all; its threshold is chosen on the "
            "validation patients of all."
        )
    return remarks


def _about_synthetic(found: Sequence[Measured]) -> list[str]:
    leaking = {
        one.trial.cell.augment
        for one in found
        if math.isfinite(one.trial.cell.epsilon) and not one.result["privacy"]["private"]
    }
    return [
        f"augment={name}: something that was made without privacy from these patients was used, so "
        "the epsilon of these models is infinite, whatever training alone would claim."
        for name in sorted(leaking)
    ]


def _falls_short(one: Measured) -> bool:
    target, privacy = one.trial.cell.epsilon, one.result["privacy"]
    if math.isinf(target) or not privacy["private"] or one.trial.config.strategy.local_steps_after:
        return False
    return not _REACHED * target <= privacy["epsilon_federation"] <= target


def _by_arm(found: Sequence[Measured], of: Callable[[Measured], int]) -> str:
    told: dict[str, set[int]] = {}
    for one in found:
        told.setdefault(one.trial.cell.arm, set()).add(of(one))
    return ", ".join(
        f"{arm} {' or '.join(map(str, sorted(numbers)))}" for arm, numbers in told.items()
    )


def _some(titles: Sequence[str]) -> str:
    shown = "; ".join(titles[:3])
    return shown if len(titles) <= 3 else f"{shown}; and {len(titles) - 3} more"
