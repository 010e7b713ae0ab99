"""What a scientist would look at first, as facts with their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from common.figures import Figure
from common.paired import PAIRED, Difference
from common.redraws import Interval
from simulations.comparison.cells import CellFigures
from simulations.comparison.differences import About, Compared
from simulations.comparison.plan import Cell
from simulations.comparison.request import Kind, spelled

_NEAR = 0.02


class Check(StrEnum):
    """What is asked of the figures."""

    federated_near_centralized = "federated_near_centralized"
    ordered_by_epsilon = "ordered_by_epsilon"
    local_below_federated = "local_below_federated"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One question and its answer.

    Attributes:
        check: the question.
        cell: about which; of ``ordered_by_epsilon`` the one with the largest epsilon.
        holds: whether the point figures say so.
        value: the AUROC difference; of ``ordered_by_epsilon`` the largest drop of a larger epsilon
            below a smaller one, 0 without one.
        ci95: of the difference, patients and (with several) seeds redrawn.
        says: in a sentence.
    """

    check: Check
    cell: Cell
    holds: bool
    value: float
    ci95: Interval | None
    says: str


def findings(cells: Mapping[Cell, CellFigures], compared: Sequence[Compared]) -> list[Finding]:
    """Every question that the figures can answer."""
    found: list[Finding] = []
    for one in compared:
        value = one.figures[Figure.auroc].value
        if value is None:
            continue
        if one.about is About.federation and math.isinf(one.a.epsilon):
            found.append(_near(one, value))
        if one.about is About.alone:
            found.append(_below(one, value))
    return [*found, *_orders(cells)]


def _near(one: Compared, value: float) -> Finding:
    holds = abs(value) <= _NEAR
    interval = _interval(one.figures[Figure.auroc])
    return Finding(
        check=Check.federated_near_centralized,
        cell=one.a,
        holds=holds,
        value=value,
        ci95=interval,
        says=(
            f"Without privacy, {_with(one.a)}{_who(one.a)} is {value:+.3f} AUROC from "
            f"centralized training{_shown(interval)}: {'' if holds else 'not '}within {_NEAR:g}."
        ),
    )


def _who(cell: Cell) -> str:
    return "federated training" if cell.arm == Kind.federated else f"the arm {cell.arm}"


def _below(one: Compared, value: float) -> Finding:
    interval = _interval(one.figures[Figure.auroc])
    clear = interval is not None and interval[1] < 0
    holds = value < 0
    word = "worse" if holds else "not worse"
    doubt = "" if clear or not holds else ", which chance alone could do"
    return Finding(
        check=Check.local_below_federated,
        cell=one.a,
        holds=holds,
        value=value,
        ci95=interval,
        says=(
            f"At epsilon {spelled(one.a.epsilon)}, {_with(one.a)}a hospital alone is {word} than "
            f"the federation: {value:+.3f} AUROC{_shown(interval)}{doubt}."
        ),
    )


def _orders(cells: Mapping[Cell, CellFigures]) -> list[Finding]:
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    place = PAIRED.index(Figure.auroc)
    for cell, figures in cells.items():
        auroc = float(figures.arm.point[:, place].mean())
        if math.isfinite(auroc):
            rows.setdefault((cell.arm, cell.augment), []).append((cell.epsilon, auroc))
    return [
        _order(arm, augment, sorted(points))
        for (arm, augment), points in rows.items()
        if len(points) > 1
    ]


def _order(arm: str, augment: str, points: Sequence[tuple[float, float]]) -> Finding:
    drops = [(low - high, a, b) for (a, low), (b, high) in pairwise(points) if high < low]
    cell = Cell(arm=arm, augment=augment, epsilon=points[-1][0])
    name = arm if augment == "none" else f"{arm} with {augment}"
    told = ", ".join(f"{spelled(epsilon)}: {auroc:.3f}" for epsilon, auroc in points)
    says = f"The AUROC of {name} rises with epsilon ({told})."
    if drops:
        drop, a, b = max(drops)
        says = (
            f"The AUROC of {name} does not rise with every epsilon ({told}): from "
            f"{spelled(a)} to {spelled(b)} it falls by {_small(drop)}."
        )
    return Finding(
        check=Check.ordered_by_epsilon,
        cell=cell,
        holds=not drops,
        value=max((drop for drop, _, _ in drops), default=0.0),
        ci95=None,
        says=says,
    )


def _interval(auroc: Difference) -> Interval | None:
    evidence = auroc.patients_and_seeds or auroc.patients
    return None if evidence is None else evidence.ci95


def _shown(interval: Interval | None) -> str:
    return "" if interval is None else f" (95 % {interval[0]:+.3f} to {interval[1]:+.3f})"


def _with(cell: Cell) -> str:
    return "" if cell.augment == "none" else f"with {cell.augment}, "


def _small(drop: float) -> str:
    return "less than 0.001" if drop < 0.0005 else f"{drop:.3f}"
