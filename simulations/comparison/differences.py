"""Which cells are held against each other, and how sure the differences are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from common.figures import Figure
from common.paired import Difference, difference
from simulations.comparison.cells import CellFigures
from simulations.comparison.plan import Cell
from simulations.comparison.request import Kind


class About(StrEnum):
    """What a difference shows."""

    federation = "federation"  # federated, or such an arm of the user's - centralized
    alone = "alone"  # local - federated
    privacy = "privacy"  # an epsilon - none
    synthetic = "synthetic"  # with synthetic images - without
    setting = "setting"  # an arm of the user's - federated


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Cell A minus cell B.

    Attributes:
        about: what it shows.
        a: cell.
        b: cell.
        figures: each figure's difference.
        p_holm: of the AUROC, two-sided, corrected for the number of differences of this kind
            (Holm 1979); from redraws of patients and seeds where there are several, else of
            patients.
    """

    about: About
    a: Cell
    b: Cell
    figures: Mapping[Figure, Difference] = field(repr=False)
    p_holm: float | None = None


def differences(cells: Mapping[Cell, CellFigures]) -> list[Compared]:
    """Every pair that is worth a look and has figures."""
    found = [
        Compared(about=about, a=a, b=b, figures=difference(cells[a].arm, cells[b].arm))
        for a, one in cells.items()
        for about, b in _partners(a, one.kind)
        if b in cells
    ]
    return [compared for about in About for compared in _corrected(found, about)]


def _partners(cell: Cell, kind: Kind) -> Iterator[tuple[About, Cell]]:
    if cell.arm == Kind.federated:
        yield About.federation, replace(cell, arm=Kind.centralized.value)
    elif cell.arm == Kind.local:
        yield About.alone, replace(cell, arm=Kind.federated.value)
    elif cell.arm not in list(Kind):
        yield About.setting, replace(cell, arm=kind.value)
        if kind is Kind.federated:
            yield About.federation, replace(cell, arm=Kind.centralized.value)
    if math.isfinite(cell.epsilon):
        yield About.privacy, replace(cell, epsilon=math.inf)
    if cell.augment != "none":
        yield About.synthetic, replace(cell, augment="none")


def _corrected(found: Sequence[Compared], about: About) -> list[Compared]:
    family = [one for one in found if one.about is about]
    p_values = [_p_value(one.figures[Figure.auroc]) for one in family]
    known = [p for p in p_values if p is not None]
    corrected = iter(holm(known))
    return [
        one if p is None else replace(one, p_holm=next(corrected))
        for one, p in zip(family, p_values, strict=True)
    ]


def _p_value(auroc: Difference) -> float | None:
    evidence = auroc.patients_and_seeds or auroc.patients
    return None if evidence is None else evidence.p_two_sided


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order (Holm 1979).

    https://www.jstor.org/stable/4615733

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
