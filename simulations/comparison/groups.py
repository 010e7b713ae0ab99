"""Fairness figures of a cell: those of its runs side by side, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.comparison.measured import Measured


def group_figures(runs: Sequence[Measured]) -> dict[str, Any]:
    """By name of a group column, what ``final.test.fairness`` of the runs says.

    Of several labels their mean. A figure holds ``value``, the mean over runs, and ``runs`` with
    the figure of each; ``value`` is ``None`` where a run has none, or too few patients.
    """
    columns = [_columns(run.result["final"]["test"].get("fairness", {})) for run in runs]
    return {
        name: {
            "groups": [
                {"value": group}
                | _together(runs, [column[name]["groups"][group] for column in columns])
                for group in columns[0][name]["groups"]
            ],
            "gaps": _together(runs, [column[name]["gaps"] for column in columns]),
        }
        for name in (columns[0] if columns else {})
    }


def _columns(fairness: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, column in fairness.items():
        chosen = column["mean"] or column["labels"][0]
        found[name] = {
            "groups": {str(group["value"]): group for group in chosen["groups"]},
            "gaps": chosen["gaps"],
        }
    return found


def _together(runs: Sequence[Measured], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures by name; counts, which all runs share, as they are."""
    together: dict[str, Any] = {}
    for name, value in found[0].items():
        if isinstance(value, dict) and "unsaid" in value:
            together[name] = _figure(runs, [one[name] for one in found])
        elif name.startswith("num_"):
            together[name] = value
    return together


def _figure(runs: Sequence[Measured], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [figure["value"] for figure in found]
    return {
        "value": None if None in values else sum(values) / len(values),
        "unsaid": next((figure["unsaid"] for figure in found if figure["unsaid"]), None),
        "runs": [
            {"seed": run.trial.seed, "site": run.trial.site}
            | {name: figure[name] for name in ("value", "ci95", "unsaid")}
            for run, figure in zip(runs, found, strict=True)
        ],
    }
