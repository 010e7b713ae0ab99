"""Figures of one way of training at one epsilon, over its seeds and, alone, its sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.paired import Arm
from simulations.comparison.measured import Measured
from simulations.comparison.plan import Cell, Trial
from simulations.comparison.request import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class CellFigures:
    """What the runs of a cell have shown.

    Attributes:
        cell: which.
        kind: who trained together.
        arm: of all seeds that are complete; where each site trains alone, the mean over sites.
        sites: of each site, where each trains alone.
        runs: behind it.
    """

    cell: Cell
    kind: Kind
    arm: Arm
    sites: dict[str, Arm] = field(repr=False)
    runs: tuple[Measured, ...] = field(repr=False)


def cells_of(
    found: Sequence[Measured], trials: Sequence[Trial], *, seed: int
) -> dict[Cell, CellFigures]:
    """Each cell that has a complete seed, in the order of the trials.

    Args:
        found: finished trials, all on the same test images.
        trials: all that were planned: a seed is complete if each of its sites has a result.
        seed: decides the redraws of patients, which all cells share.
    """
    sites: dict[Cell, set[str]] = {}
    for trial in trials:
        sites.setdefault(trial.cell, set()).update([trial.site] if trial.site else [])
    by_cell: dict[Cell, list[Measured]] = {cell: [] for cell in sites}
    for one in found:
        by_cell[one.trial.cell].append(one)
    figures = {
        cell: _figures(cell, runs, sorted(sites[cell]), seed) for cell, runs in by_cell.items()
    }
    return {cell: one for cell, one in figures.items() if one is not None}


def _figures(
    cell: Cell, runs: Sequence[Measured], sites: Sequence[str], seed: int
) -> CellFigures | None:
    if not runs:
        return None
    if not sites:
        return CellFigures(
            cell=cell,
            kind=runs[0].trial.kind,
            arm=_arm(runs, seed),
            sites={},
            runs=tuple(runs),
        )
    seen: dict[int, set[str | None]] = {}
    for run in runs:
        seen.setdefault(run.trial.seed, set()).add(run.trial.site)
    whole = {number for number, names in seen.items() if names == set(sites)}
    complete = [run for run in runs if run.trial.seed in whole]
    if not complete:
        return None
    arms = {site: _arm([run for run in complete if run.trial.site == site], seed) for site in sites}
    return CellFigures(
        cell=cell,
        kind=runs[0].trial.kind,
        arm=mean_of(list(arms.values())),
        sites=arms,
        runs=tuple(complete),
    )


def _arm(runs: Sequence[Measured], seed: int) -> Arm:
    return Arm.of({run.trial.seed: run.predictions.scored for run in runs}, seed=seed)


def mean_of(arms: Sequence[Arm]) -> Arm:
    """The mean of several arms, seed by seed and redraw by redraw.

    Raises:
        ValueError: other seeds, test images or redraws in one of them.
    """
    first = arms[0]
    for other in arms[1:]:
        same = (
            other.seeds == first.seeds
            and other.redraws_seed == first.redraws_seed
            and all(map(np.array_equal, other.cohort, first.cohort))
        )
        if not same:
            raise ValueError("arms: their seeds, test images or redraws differ")
    return Arm(
        seeds=first.seeds,
        point=np.mean([arm.point for arm in arms], axis=0),
        draws=np.mean([arm.draws for arm in arms], axis=0),
        few=first.few,
        cohort=first.cohort,
        redraws_seed=first.redraws_seed,
    )
