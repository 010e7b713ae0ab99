"""From finished trials to the content of ``comparison.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import configs
from common.privacy.events import alone
from common.provenance import of_this_program
from common.seeds import derive_seed
from simulations.comparison.cells import CellFigures, cells_of
from simulations.comparison.checks import findings
from simulations.comparison.correlations import correlations
from simulations.comparison.differences import differences
from simulations.comparison.equality import equality
from simulations.comparison.folder import Folder
from simulations.comparison.groups import group_figures
from simulations.comparison.measured import Measured, check_comparable
from simulations.comparison.plan import Cell, Plan, Trial
from simulations.comparison.request import Request
from simulations.comparison.sources import sources
from simulations.comparison.tuning import Tuning

SCHEMA = "fedward.comparison/1"


def compare(
    request: Request,
    plan: Plan,
    folder: Folder,
    problems: Mapping[str, str],
    tuning: Tuning | None = None,
) -> dict[str, Any]:
    """Read every finished trial, and hold the arms against each other.

    Args:
        request: what was asked for.
        plan: its trials.
        folder: where they lie.
        problems: why trials have no result, by name.
        tuning: how settings were chosen before.

    Raises:
        UsageError: if trials differ in what must be equal; see `check_comparable`.
    """
    done = [one for one in plan.trials if folder.finished(one.name).result.is_file()]
    found = [Measured.read(trial, folder.finished(trial.name)) for trial in done]
    asked = {
        "size": request.size.value,
        "arms": [
            {"name": arm.name, "kind": arm.kind.value, "overrides": list(arm.overrides)}
            for arm in request.arms
        ],
        "augments": list(request.augments),
        "epsilons": [_finite(epsilon) for epsilon in request.epsilons],
        "seeds": list(request.seeds),
        "overrides": list(request.overrides),
    }
    return {
        **compared(found, plan, configs.to_dict(plan.config), tuning),
        "request": asked,
        "trials": [
            trial_facts(
                trial,
                folder=folder.finished(trial.name).path.relative_to(folder.path)
                if trial in done
                else None,
                problem=problems.get(trial.name),
            )
            for trial in plan.trials
        ],
        "missing": [
            {"trial": trial.title, "name": trial.name, "problem": problems.get(trial.name)}
            for trial in plan.trials
            if trial not in done
        ],
    }


def compared(
    found: Sequence[Measured],
    plan: Plan,
    shared: Mapping[str, Any],
    tuning: Tuning | None = None,
) -> dict[str, Any]:
    """Hold finished runs against each other: all of ``comparison.json`` that rests on results.

    Args:
        found: runs.
        plan: the trials that they belong to, and the study.
        shared: settings that are the same in all.
        tuning: how settings were chosen before.

    Raises:
        UsageError: if runs differ in what must be equal; see `check_comparable`.
    """
    check_comparable(found)
    seed = derive_seed(plan.config.seed, "comparison")
    cells = cells_of(found, plan.trials, seed=seed)
    pairs = differences(cells)
    groups = {cell: group_figures(figures.runs) for cell, figures in cells.items()}
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "program": of_this_program(),
        "title": plan.config.title,
        "study": {
            "name": plan.config.data.name,
            "public": plan.config.data.public,
            "task": found[0].result["study"]["task"] if found else None,
            "sites": plan.survey.sites,
            "num_train_patients": sum(plan.survey.sites.values()),
            "num_train_images": plan.survey.num_images,
        },
        "config": dict(shared),
        "versions": found[0].result["versions"] if found else {},
        "sources": sources(found),
        "equal": equality(plan, found, tuning) if found else None,
        "tuning": None if tuning is None else tuning.to_dict(),
        "cells": [_cell(figures, groups[cell], plan, tuning) for cell, figures in cells.items()],
        "differences": [
            {
                "about": one.about.value,
                "a": named(one.a),
                "b": named(one.b),
                "p_holm": one.p_holm,
                "figures": {name.value: figure.to_dict() for name, figure in one.figures.items()},
            }
            for one in pairs
        ],
        "checks": [
            {
                "check": one.check.value,
                **named(one.cell),
                "holds": one.holds,
                "value": one.value,
                "ci95": None if one.ci95 is None else list(one.ci95),
                "says": one.says,
            }
            for one in findings(cells, pairs)
        ],
        "correlations": _plain(correlations(cells, groups)),
    }


def named(cell: Cell) -> dict[str, Any]:
    """As JSON names a cell; no privacy is an epsilon of ``null``."""
    return {"arm": cell.arm, "augment": cell.augment, "epsilon": _finite(cell.epsilon)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Infinite numbers as ``null``."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return _finite(value) if isinstance(value, float) else value


def trial_facts(trial: Trial, *, folder: Path | None, problem: str | None = None) -> dict[str, Any]:
    """One of ``trials``: what was run, and where it lies, if it has a result."""
    return {
        **named(trial.cell),
        "kind": trial.kind.value,
        "seed": trial.seed,
        "site": trial.site,
        "name": trial.name,
        "folder": None if folder is None else str(folder),
        "problem": problem,
    }


def _cell(
    figures: CellFigures, groups: Mapping[str, Any], plan: Plan, tuning: Tuning | None
) -> dict[str, Any]:
    planned = {trial.seed for trial in plan.trials if trial.cell == figures.cell}
    return {
        **named(figures.cell),
        "kind": figures.kind.value,
        "seeds": list(figures.arm.seeds),
        "missing_seeds": sorted(planned - set(figures.arm.seeds)),
        "privacy": _privacy(figures, tuning),
        "figures": {
            name.value: summary.to_dict() for name, summary in figures.arm.summary().items()
        },
        "sites": {
            site: {
                "num_patients": plan.survey.sites.get(site),
                "figures": {
                    name.value: summary.to_dict() for name, summary in arm.summary().items()
                },
            }
            for site, arm in figures.sites.items()
        },
        "groups": dict(groups),
        "trials": [run.trial.name for run in figures.runs],
    }


def _privacy(figures: CellFigures, tuning: Tuning | None) -> dict[str, Any]:
    """What holds for the models of a cell, and what training alone would claim.

    The largest over runs: each is a hypothetical of its own, none pays for another. A search on
    these patients is part of each.
    """
    facts = [run.result["privacy"] for run in figures.runs]
    claims = [_claim(run) for run in figures.runs]
    epsilon = _largest([_spent(figures.cell, run, tuning) for run in figures.runs])
    return {
        "private": all(fact["private"] for fact in facts),
        "epsilon": epsilon,
        "epsilon_claimed": _largest(claims),
        "epsilon_alone": None if epsilon is None else _alone(figures, tuning, epsilon),
        "delta": facts[0]["delta"],
        "noise_multiplier": facts[0]["noise_multiplier"],
        "num_patients": sorted({run.num_patients for run in figures.runs}),
    }


def _spent(cell: Cell, run: Measured, tuning: Tuning | None) -> float | None:
    spent = run.result["privacy"]["epsilon_federation"]
    if spent is None or tuning is None or not tuning.search.private:
        return spent
    return _finite(max(spent, tuning.epsilon(cell, run.result)))


def _largest(values: Sequence[float | None]) -> float | None:
    """``None`` is infinite."""
    finite = [value for value in values if value is not None]
    return max(finite) if len(finite) == len(values) else None


def _alone(figures: CellFigures, tuning: Tuning | None, epsilon: float) -> float | None:
    """What a hospital's own noise gives where others would add theirs; else ``epsilon``."""
    sites = [site for run in figures.runs for site in run.result["privacy"]["sites"].values()]
    shared = [site["epsilon_alone"] for site in sites if "epsilon_alone" in site]
    if not shared or None in shared:
        return None if shared else epsilon
    if tuning is not None and tuning.search.private:
        shared = [tuning.epsilon(figures.cell, run.result, alone) for run in figures.runs]
    return _finite(max(epsilon, *shared))


def _claim(run: Measured) -> float | None:
    """Epsilon as if synthetic images had cost nothing."""
    synthetic = run.result.get("synthetic")
    if synthetic is None:
        return run.result["privacy"]["epsilon_federation"]
    return synthetic["epsilon_claimed_without_them"]
