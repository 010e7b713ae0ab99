"""The table of what a search for settings has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.comparison.curves import Comparison
from simulations.comparison.sheet import Column, Kind, Sheet


def tuning(comparison: Comparison) -> Sheet:
    """What each arm took at each epsilon; no row without a search."""
    facts: Mapping[str, Any] | None = comparison.get("tuning")
    return Sheet(
        name="tuning",
        caption=(
            "Settings that each arm took at each epsilon: the best of all candidates by AUROC on "
            "the validation patients of the search, one run each."
        ),
        columns=(
            Column(heading="Arm", name="arm"),
            Column(heading="Epsilon", name="epsilon", kind=Kind.target),
            Column(heading="Settings", name="settings"),
            Column(heading="Validation AUROC", name="auroc", kind=Kind.spread),
            Column(heading="Other candidates", name="others"),
        ),
        rows=()
        if facts is None
        else tuple(
            (one["arm"], one["epsilon"], " ".join(one["taken"]), one["auroc"], _others(one))
            for one in facts["choices"]
        ),
    )


def _others(choice: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{' '.join(one['settings'])}: {_figure(one['auroc'])}"
        for one in choice["candidates"]
        if one["settings"] != choice["taken"]
    )


def _figure(auroc: float | None) -> str:
    return "not measured" if auroc is None else f"{auroc:.3f}"
