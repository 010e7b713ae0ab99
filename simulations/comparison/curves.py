"""What the figures of a comparison show: values against epsilon, and differences, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.redraws import Interval
from simulations.comparison.published import PublishedPoint

Comparison = Mapping[str, Any]
"""The content of ``comparison.json``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One value at one epsilon.

    Attributes:
        epsilon: the target; infinity without privacy.
        value: in the middle.
        ends: of a 95 % interval, or one standard deviation around what others published.
        leaks: whether the epsilon is only claimed: the honest one is larger, or infinite.
    """

    epsilon: float
    value: float
    ends: Interval | None
    leaks: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line: an arm, a group, or what others published."""

    label: str
    points: tuple[Point, ...]
    reference: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Lines that share axes."""

    title: str
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One difference of a forest plot; ``p`` is corrected."""

    label: str
    value: float
    ends: Interval | None
    p: float | None


def estimate(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """With evidence from patients and seeds where there are several, else from patients."""
    return summary["patients_and_seeds"] or summary["patients"]


def unbounded(epsilon: float | None) -> float:
    """JSON has no infinity."""
    return math.inf if epsilon is None else epsilon


def leaks(cell: Mapping[str, Any]) -> bool:
    """Whether a finite epsilon was asked for and does not hold."""
    return cell["epsilon"] is not None and cell["privacy"]["epsilon"] is None


def exceeds(cell: Mapping[str, Any]) -> bool:
    """Whether more was spent than the epsilon that a cell stands at.

    >>> exceeds({"epsilon": 8.0, "privacy": {"epsilon": 19.5}})
    True
    """
    asked, spent = cell["epsilon"], cell["privacy"]["epsilon"]
    return asked is not None and (spent is None or spent > asked * (1 + 1e-9))


def use_of(augment: str) -> str:
    """A use of synthetic images in words.

    >>> use_of("none"), use_of("mix"), use_of("pretrain_then_dp_head")
    ('real images only', 'synthetic images: mix', 'synthetic images: pretrain then dp head')
    """
    return "real images only" if augment == "none" else f"synthetic images: {spaced(augment)}"


def spaced(name: str) -> str:
    """A name of the configuration as words."""
    return name.replace("_", " ")


def by_arm(
    comparison: Comparison, figure: str, published: Sequence[PublishedPoint] = ()
) -> list[Panel]:
    """``figure`` against epsilon: a panel for each use of synthetic images, a line for each arm."""
    panels: list[Panel] = []
    for augment in _listed(comparison, "augment"):
        found = [
            Series(label=arm, points=_points(comparison, arm, augment, figure))
            for arm in _listed(comparison, "arm")
        ]
        found += _references(published, augment)
        shown = tuple(one for one in found if one.points)
        if shown:
            panels.append(Panel(title=use_of(augment), series=shown))
    return panels


def by_group(comparison: Comparison, column: str, figure: str) -> list[Panel]:
    """A figure of each group against epsilon: a panel for each arm, on real images if any are.

    Intervals are those of single runs: from the lowest end to the highest.
    """
    augment = next(iter(_listed(comparison, "augment")), None)
    panels: list[Panel] = []
    for arm in _listed(comparison, "arm"):
        lines: dict[str, list[Point]] = {}
        for cell in _cells(comparison, arm, augment):
            for group in cell["groups"].get(column, {"groups": ()})["groups"]:
                point = _group_point(cell, group[figure])
                if point is not None and group["value"] != "unknown":
                    lines.setdefault(group["value"], []).append(point)
        series = tuple(
            Series(label=f"{column} {value}", points=tuple(points))
            for value, points in lines.items()
        )
        if series:
            panels.append(Panel(title=arm, series=series))
    return panels


def bars(comparison: Comparison, figure: str = "auroc") -> list[Bar]:
    """Every difference of ``figure`` that has a value."""
    found: list[Bar] = []
    for one in comparison["differences"]:
        told = one["figures"][figure]
        evidence = told["patients_and_seeds"] or told["patients"]
        if told["value"] is not None:
            ends = None if evidence is None else evidence["ci95"]
            found.append(
                Bar(
                    label=f"{named(one['a'])} \u2212 {named(one['b'])}",
                    value=told["value"],
                    ends=None if ends is None else (ends[0], ends[1]),
                    p=one["p_holm"] if figure == "auroc" else None,
                )
            )
    return found


def named(cell: Mapping[str, Any]) -> str:
    """A cell in a few words.

    >>> named({"arm": "local", "augment": "mix", "epsilon": None})
    'local, mix, no privacy'
    """
    use = [] if cell["augment"] == "none" else [spaced(cell["augment"])]
    epsilon = cell["epsilon"]
    privacy = "no privacy" if epsilon is None else f"ε\u00a0{epsilon:g}"
    return ", ".join([cell["arm"], *use, privacy])


def _listed(comparison: Comparison, name: str) -> list[str]:
    """Arms, or uses of synthetic images, in the order of the cells."""
    return list(dict.fromkeys(cell[name] for cell in comparison["cells"]))


def _cells(comparison: Comparison, arm: str, augment: str | None) -> Iterator[Mapping[str, Any]]:
    """In ascending order of epsilon."""
    mine = [
        cell for cell in comparison["cells"] if (cell["arm"], cell["augment"]) == (arm, augment)
    ]
    return iter(sorted(mine, key=lambda cell: unbounded(cell["epsilon"])))


def _points(comparison: Comparison, arm: str, augment: str, figure: str) -> tuple[Point, ...]:
    found: list[Point] = []
    for cell in _cells(comparison, arm, augment):
        told = estimate(cell["figures"][figure])
        if told["value"] is not None:
            ends = told["ci95"]
            found.append(
                Point(
                    epsilon=unbounded(cell["epsilon"]),
                    value=told["value"],
                    ends=None if ends is None else (ends[0], ends[1]),
                    leaks=exceeds(cell),
                )
            )
    return tuple(found)


def _references(published: Sequence[PublishedPoint], augment: str) -> list[Series]:
    lines: dict[str, list[Point]] = {}
    for one in published:
        if one.augment == augment:
            spread = (one.auroc - one.standard_deviation, one.auroc + one.standard_deviation)
            point = Point(
                epsilon=one.epsilon,
                value=one.auroc,
                ends=spread,
                leaks=one.leaks and math.isfinite(one.epsilon),
            )
            lines.setdefault(one.setting, []).append(point)
    return [
        Series(label=f"published: {setting}", points=tuple(points), reference=True)
        for setting, points in lines.items()
    ]


def _group_point(cell: Mapping[str, Any], figure: Mapping[str, Any]) -> Point | None:
    if figure["value"] is None:
        return None
    return Point(
        epsilon=unbounded(cell["epsilon"]),
        value=figure["value"],
        ends=span_of_runs(figure),
        leaks=exceeds(cell),
    )


def span_of_runs(figure: Mapping[str, Any]) -> Interval | None:
    """From the lowest to the highest end of the intervals of single runs; of one run, its own."""
    ends = [run["ci95"] for run in figure["runs"] if run["ci95"] is not None]
    if not ends:
        return None
    return min(low for low, _ in ends), max(high for _, high in ends)
