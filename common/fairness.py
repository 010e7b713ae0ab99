"""Whether a model does as well for one group of patients as for another.

Any column of `Scored.groups` will do. Everything here reads held-out patients without a privacy
mechanism. Formulas, with what each interval means and its bias: docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.estimate import FEWEST_PATIENTS, Estimate, Support, Unsaid
from common.evaluation import in_order, nan_mean
from common.figures import Figure, Measure
from common.redraws import NUM_REDRAWS, Counts, Values, redrawn
from common.scored import Scored

UNKNOWN_GROUP = "unknown"
"""The value of a group that nobody wrote down; compared with none and part of no "others"."""

BY_GROUP = (
    Figure.accuracy,
    Figure.sensitivity,
    Figure.specificity,
    Figure.auroc,
    Figure.ece,
    Figure.calibration_gap,
)
_WITHOUT_OTHERS = BY_GROUP[4:]
_COMPARED = BY_GROUP[:4]

Few = tuple[tuple[Unsaid | None, ...], ...]
"""For each of some groups, and each figure of `BY_GROUP`, whether patients are too few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFigures:
    """One group; derived from its patients.

    Attributes:
        value: the group's value, such as ``"F"``.
        support: its patients; of the mean over labels ``None``.
        accuracy: share of images answered rightly at the threshold.
        false_negative_rate: share of images with the label that are missed: underdiagnosis.
        false_positive_rate: share of images without it that are said to have it.
        auroc: of the group's images alone.
        ece: expected calibration error, equal-mass bins of the group's own scores.
        ece_if_calibrated: what it would be on average if every probability were right.
        calibration_gap: mean probability minus share with the label.
        spd: accuracy of the group minus that of all others together (statistical parity difference
            of Tayebi Arasteh et al. 2024).
        false_negative_rate_difference: the same of the false-negative rate.
        false_positive_rate_difference: the same of the false-positive rate.
        auroc_difference: the same of the AUROC.
    """

    value: str
    support: Support | None
    accuracy: Estimate
    false_negative_rate: Estimate
    false_positive_rate: Estimate
    auroc: Estimate
    ece: Estimate
    ece_if_calibrated: float | None
    calibration_gap: Estimate
    spd: Estimate
    false_negative_rate_difference: Estimate
    false_positive_rate_difference: Estimate
    auroc_difference: Estimate

    def to_dict(self) -> dict[str, object]:
        """As result.json holds it."""
        found: dict[str, object] = {"value": self.value}
        if self.support is not None:
            found |= {
                "num_images": self.support.num_images,
                "num_patients": self.support.num_patients,
                "num_positive_patients": self.support.num_with,
                "num_negative_patients": self.support.num_without,
            }
        for name in self.__slots__:
            one = getattr(self, name)
            if isinstance(one, Estimate):
                found[name] = one.to_dict()
        return found | {"ece_if_calibrated": self.ece_if_calibrated}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaps:
    """From the worst group to the best, among groups with enough patients; never below 0.

    Chance alone makes a gap, the larger the more groups and the fewer patients: that an interval
    begins above 0 is no sign of unfairness. Signed differences from the others are in
    `GroupFigures`.

    Attributes:
        accuracy: largest minus smallest accuracy.
        auroc: largest minus smallest AUROC.
        false_negative_rate: largest minus smallest false-negative rate.
        equalised_odds: the larger of the gaps in true-positive and false-positive rate.
    """

    accuracy: Estimate
    auroc: Estimate
    false_negative_rate: Estimate
    equalised_odds: Estimate

    def to_dict(self) -> dict[str, object]:
        """As result.json holds it."""
        return {name: getattr(self, name).to_dict() for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fairness:
    """One label, or the mean over labels, by the groups of one column.

    Attributes:
        labels: the name; of a mean by figure those with enough patients in every compared group.
        groups: in order of their values.
        gaps: between groups.
    """

    labels: Mapping[Figure, tuple[str, ...]] | str
    groups: tuple[GroupFigures, ...]
    gaps: Gaps

    def to_dict(self) -> dict[str, object]:
        """As result.json holds it."""
        names = (
            {"name": self.labels}
            if isinstance(self.labels, str)
            else {"labels": {figure.value: list(some) for figure, some in self.labels.items()}}
        )
        groups = [group.to_dict() for group in self.groups]
        return {**names, "groups": groups, "gaps": self.gaps.to_dict()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnFairness:
    """All labels by the groups of one column.

    Attributes:
        labels: one for each name of the task.
        mean: over labels; ``None`` of a task with one.
    """

    labels: tuple[Fairness, ...]
    mean: Fairness | None

    def to_dict(self) -> dict[str, object]:
        """One of ``final.test.fairness`` of result.json."""
        return {
            "labels": [label.to_dict() for label in self.labels],
            "mean": None if self.mean is None else self.mean.to_dict(),
        }


def fairness(
    scored: Scored, *, seed: int, num_redraws: int = NUM_REDRAWS
) -> dict[str, ColumnFairness]:
    """By name of a column of groups; empty with fewer than two patients.

    All patients are redrawn together, so the same samples lie behind every group, label and column.

    Args:
        scored: with groups, and thresholds if accuracy and error rates are to be measured.
        seed: decides the redraws.
        num_redraws: how many.
    """
    if scored.num_patients < 2:
        return {}
    return {
        name: _by_column(scored, column, seed=seed, num_redraws=num_redraws)
        for name, column in scored.groups.items()
    }


def _by_column(
    scored: Scored, column: NDArray[np.str_], *, seed: int, num_redraws: int
) -> ColumnFairness:
    values = in_order(np.unique(column).tolist())
    known = column != UNKNOWN_GROUP
    groups = [column == value for value in values]
    others = [known & ~rows if (rows & known).any() else np.zeros_like(rows) for rows in groups]
    names = scored.task.names
    found = [
        _measured(_Split.of(scored, place, groups, others), scored, seed, num_redraws)
        for place in range(len(names))
    ]
    labels = tuple(_told(one, values, name) for name, one in zip(names, found, strict=True))
    mean = None
    if len(names) > 1:
        merged, used = _merged(found, names, values)
        mean = _told(merged, values, used)
    return ColumnFairness(labels=labels, mean=mean)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Split:
    """One label among the images of each group, and of the others."""

    groups: tuple[Measure, ...]
    others: tuple[Measure, ...]
    supports: tuple[Support, ...]
    other_supports: tuple[Support, ...]

    @classmethod
    def of(
        cls,
        scored: Scored,
        place: int,
        groups: list[NDArray[np.bool_]],
        others: list[NDArray[np.bool_]],
    ) -> _Split:
        return cls(
            groups=tuple(scored.measure(place, rows) for rows in groups),
            others=tuple(scored.measure(place, rows) for rows in others),
            supports=tuple(scored.support(place, rows) for rows in groups),
            other_supports=tuple(scored.support(place, rows) for rows in others),
        )

    def __call__(self, counts: Counts) -> Values:
        """(B, G, F, 2) figures of each group, and of the others where they are compared."""
        here = np.stack([one(counts, BY_GROUP) for one in self.groups], axis=1)
        there = np.full_like(here, np.nan)
        for place, one in enumerate(self.others):
            there[:, place, : len(_COMPARED)] = one(counts, _COMPARED)
        return np.stack([here, there], axis=-1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Found:
    """What was measured of a label, or of the mean over labels.

    Attributes:
        point: (G, F, 2).
        draws: (R, G, F, 2).
        few: where patients are too few, in the group and (second) the others.
        supports: of each group; none of a mean.
        if_calibrated: of each group.
    """

    point: Values
    draws: Values
    few: tuple[Few, Few]
    supports: tuple[Support | None, ...]
    if_calibrated: tuple[float | None, ...]


def _measured(split: _Split, scored: Scored, seed: int, num_redraws: int) -> _Found:
    (draws,) = redrawn([split], scored.patients, num_redraws=num_redraws, seed=seed)
    (point,) = split(np.ones((1, len(scored.labels)), dtype=np.int64))
    binned = [measure.binned for measure in split.groups]
    return _Found(
        point=point,
        draws=draws,
        few=(_few(split.supports), _few(split.other_supports)),
        supports=split.supports,
        if_calibrated=tuple(None if one is None else one.error_if_calibrated for one in binned),
    )


def _few(supports: tuple[Support, ...]) -> Few:
    return tuple(tuple(one.too_few(support) for one in BY_GROUP) for support in supports)


def _merged(
    found: list[_Found], names: tuple[str, ...], values: list[str]
) -> tuple[_Found, Mapping[Figure, tuple[str, ...]]]:
    """The mean over labels; of each figure over those with enough patients in all large groups."""
    large = [
        place
        for place, value in enumerate(values)
        if value != UNKNOWN_GROUP
        and any((one.supports[place] or _NOBODY).num_patients >= FEWEST_PATIENTS for one in found)
    ]
    used: dict[Figure, tuple[str, ...]] = {}
    points = np.stack([one.point for one in found], axis=-1)
    draws = np.stack([one.draws for one in found], axis=-1)
    for column, figure in enumerate(BY_GROUP):
        out = [any(one.few[0][place][column] for place in large) for one in found]
        used[figure] = tuple(name for name, is_out in zip(names, out, strict=True) if not is_out)
        points[:, column, :, np.array(out)] = np.nan
        draws[:, :, column, :, np.array(out)] = np.nan
    few = tuple(
        tuple(
            tuple(
                _common([one.few[side][place][column] for one in found])
                for column in range(len(BY_GROUP))
            )
            for place in range(len(values))
        )
        for side in (0, 1)
    )
    merged = _Found(
        point=nan_mean(points),
        draws=nan_mean(draws),
        few=(few[0], few[1]),
        supports=(None,) * len(values),
        if_calibrated=(None,) * len(values),
    )
    return merged, used


_NOBODY = Support(num_images=0, num_patients=0, num_with=0, num_without=0)


def _common(reasons: list[Unsaid | None]) -> Unsaid | None:
    """Nothing can be said of a mean if nothing can be said of any label in it."""
    return reasons[0] if all(reasons) else None


def _told(
    found: _Found, values: list[str], labels: Mapping[Figure, tuple[str, ...]] | str
) -> Fairness:
    groups = tuple(_group(found, place, value) for place, value in enumerate(values))
    return Fairness(labels=labels, groups=groups, gaps=_gaps(found, values))


def _group(found: _Found, place: int, value: str) -> GroupFigures:
    def here(figure: Figure, *, inverse: bool = False) -> Estimate:
        column = BY_GROUP.index(figure)
        point, draws = found.point[place, column, 0], found.draws[:, place, column, 0]
        few = found.few[0][place][column]
        return _estimate(1 - point, 1 - draws, few) if inverse else _estimate(point, draws, few)

    def apart(figure: Figure, sign: int = 1) -> Estimate:
        column = BY_GROUP.index(figure)
        point, draws = found.point[place, column], found.draws[:, place, column]
        few = found.few[0][place][column] or found.few[1][place][column]
        return _estimate(sign * (point[0] - point[1]), sign * (draws[:, 0] - draws[:, 1]), few)

    return GroupFigures(
        value=value,
        support=found.supports[place],
        accuracy=here(Figure.accuracy),
        false_negative_rate=here(Figure.sensitivity, inverse=True),
        false_positive_rate=here(Figure.specificity, inverse=True),
        auroc=here(Figure.auroc),
        ece=here(Figure.ece),
        ece_if_calibrated=found.if_calibrated[place],
        calibration_gap=here(Figure.calibration_gap),
        spd=apart(Figure.accuracy),
        false_negative_rate_difference=apart(Figure.sensitivity, -1),
        false_positive_rate_difference=apart(Figure.specificity, -1),
        auroc_difference=apart(Figure.auroc),
    )


def _gaps(found: _Found, values: list[str]) -> Gaps:
    return Gaps(
        accuracy=_gap(found, values, Figure.accuracy),
        auroc=_gap(found, values, Figure.auroc),
        false_negative_rate=_gap(found, values, Figure.sensitivity),
        equalised_odds=_gap(found, values, Figure.sensitivity, Figure.specificity),
    )


def _gap(found: _Found, values: list[str], *figures: Figure) -> Estimate:
    """The largest range of the figures over groups with enough patients for all of them."""
    columns = [BY_GROUP.index(figure) for figure in figures]
    reasons = {
        place: [found.few[0][place][column] for column in columns if found.few[0][place][column]]
        for place, value in enumerate(values)
        if value != UNKNOWN_GROUP
    }
    compared = [place for place, why in reasons.items() if not why]
    if len(compared) < 2:
        missing = [why[0] for why in reasons.values() if why]
        first = missing[0] if missing else None
        return Estimate.withheld(first or Unsaid.not_measured)
    point = found.point[np.ix_(compared, columns)][..., 0]
    draws = found.draws[:, compared][:, :, columns, 0]
    return _estimate(np.ptp(point, axis=0).max(), np.ptp(draws, axis=1).max(axis=1), None)


def _estimate(point: np.float64, draws: Values, few: Unsaid | None) -> Estimate:
    """Nothing at all is told of too few patients."""
    return Estimate.withheld(few) if few else Estimate.of(float(point), draws)
