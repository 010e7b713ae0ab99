"""Pearson's r over labels and over models, as Tayebi Arasteh et al. 2024 show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.config import TaskKind
from common.correlation import over_labels, over_models
from simulations.comparison.cells import CellFigures
from simulations.comparison.measured import Measured
from simulations.comparison.plan import Cell

_FEWEST = 3


def correlations(
    cells: Mapping[Cell, CellFigures], groups: Mapping[Cell, Mapping[str, Any]]
) -> dict[str, Any]:
    """Over labels: AUROC lost under privacy; over epsilons: the SPD of each group.

    Args:
        cells: figures.
        groups: of each cell, from `group_figures`.
    """
    return {"labels": _labels(cells), "spd_and_epsilon": _spd(cells, groups)}


def _labels(cells: Mapping[Cell, CellFigures]) -> list[dict[str, Any]]:
    """Of each private cell of a study with several findings; samples are positive test images."""
    found: list[dict[str, Any]] = []
    for cell, figures in cells.items():
        plain = cells.get(replace(cell, epsilon=math.inf))
        task = figures.runs[0].predictions.scored.task
        if math.isinf(cell.epsilon) or plain is None or task.kind is TaskKind.binary:
            continue
        labels = figures.runs[0].result["final"]["test"]["labels"]
        named = over_labels(
            _aurocs(plain.runs),
            _aurocs(figures.runs),
            {label["name"]: label["num_positive"] for label in labels},
        )
        found.append(
            {"arm": cell.arm, "augment": cell.augment, "epsilon": cell.epsilon}
            | {name: getattr(named, name).to_dict() for name in named.__slots__}
        )
    return found


def _aurocs(runs: Sequence[Measured]) -> dict[str, float | None]:
    """Of each label, the mean over runs."""
    by_name: dict[str, list[float | None]] = {}
    for run in runs:
        for label in run.result["final"]["test"]["labels"]:
            by_name.setdefault(label["name"], []).append(label["auroc"])
    return {
        name: None if None in values else sum(v for v in values if v is not None) / len(values)
        for name, values in by_name.items()
    }


def _spd(
    cells: Mapping[Cell, CellFigures], groups: Mapping[Cell, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of each group whose SPD is known at three finite epsilons or more."""
    points: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    for cell in cells:
        for column, told in groups[cell].items():
            for group in told["groups"]:
                spd = group["spd"]["value"]
                if spd is not None:
                    key = (cell.arm, cell.augment, column, group["value"])
                    points.setdefault(key, []).append((cell.epsilon, spd))
    return [
        {"arm": arm, "augment": augment, "column": column, "group": group}
        | over_models([epsilon for epsilon, _ in some], [spd for _, spd in some]).to_dict()
        for (arm, augment, column, group), some in points.items()
        if sum(math.isfinite(epsilon) for epsilon, _ in some) >= _FEWEST
    ]
