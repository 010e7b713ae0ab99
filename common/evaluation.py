"""How a model did on held-out patients: by label, on average, and by group of patients.

Everything here reads held-out patients without a privacy mechanism: what it returns about private
patients must not leave a site. Thresholds come from other patients (`common.thresholds`). Formulas
and what the intervals mean: docs/statistics.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from common.config import TaskKind
from common.estimate import Estimate
from common.figures import Figure
from common.metrics import auroc, average_precision
from common.redraws import Counts, Interval, Ranking, Values, auroc_intervals, redrawn
from common.reliability import Point
from common.scored import Scored, targets
from common.task import UNKNOWN, Task

FIGURES = tuple(figure for figure in Figure if figure is not Figure.auroc)
"""What is measured beside the AUROC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFigures:
    """One label among the images of which it is known.

    AUROC and its interval, ``auprc`` (looking for it) and ``auprc_negative`` (looking for its
    absence) are ``None`` where a class is missing, or all images are of one patient. Of one patient
    there are no ``figures`` and no ``reliability`` either.

    Attributes:
        threshold: from validation, `Scored.thresholds`.
        figures: those of `FIGURES`, with their intervals.
        ece_if_calibrated: what ``figures["ece"]`` would be on average if every probability were
            right.
        reliability: one point for each bin of equal mass; empty if scores are no probabilities.
    """

    name: str
    num_images: int
    num_positive: int
    num_positive_patients: int
    num_negative_patients: int
    auroc: float | None
    auroc_ci95: Interval | None
    auprc: float | None
    auprc_negative: float | None
    threshold: float | None = None
    figures: Mapping[Figure, Estimate] = field(default_factory=dict[Figure, Estimate])
    ece_if_calibrated: float | None = None
    reliability: tuple[Point, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """One of ``final.test.labels`` of result.json."""
        return {
            "name": self.name,
            "num_images": self.num_images,
            "num_positive": self.num_positive,
            "num_positive_patients": self.num_positive_patients,
            "num_negative_patients": self.num_negative_patients,
            "auroc": self.auroc,
            "auroc_ci95": _listed(self.auroc_ci95),
            "auprc": self.auprc,
            "auprc_negative": self.auprc_negative,
            "threshold": self.threshold,
            "figures": _dicts(self.figures),
            "ece_if_calibrated": self.ece_if_calibrated,
            "reliability": [point.to_dict() for point in self.reliability],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Macro:
    """The mean AUROC over the labels that have one.

    Attributes:
        auroc: ``None`` if no label has one.
        auroc_ci95: patient-bootstrap interval.
        left_out: labels that have none: a class is missing.
        num_patients_of_class: the number of patients on the smaller side (with or without) of the
            label that has most there; where it is small, the interval is too narrow.
        num_patients: of all images.
        num_images: all, whether a label is known or not.
    """

    auroc: float | None
    auroc_ci95: Interval | None
    left_out: tuple[str, ...]
    num_patients_of_class: int
    num_patients: int
    num_images: int

    def to_dict(self) -> dict[str, object]:
        """What ``final.test`` and each of its groups hold in result.json."""
        return {
            "auroc": self.auroc,
            "auroc_ci95": _listed(self.auroc_ci95),
            "left_out": list(self.left_out),
            "num_patients_of_class": self.num_patients_of_class,
            "num_patients": self.num_patients,
            "num_images": self.num_images,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a model did on held-out patients; every field but the names is derived from them.

    Attributes:
        task: what was asked.
        macro: over all patients; of a binary task, the figures of its one label.
        labels: one for each name of the task.
        groups: by name and value of a group, over the patients with that value.
        figures: means over the labels that have each figure.
    """

    task: Task
    macro: Macro
    labels: tuple[LabelFigures, ...]
    groups: Mapping[str, Mapping[str, Macro]]
    figures: Mapping[Figure, Estimate]

    def to_dict(self) -> dict[str, object]:
        """The ``final.test`` of result.json."""
        figures = self.macro.to_dict()
        if self.task.kind is TaskKind.binary:
            (label,) = self.labels
            figures |= {"auprc_malignant": label.auprc, "auprc_benign": label.auprc_negative}
        figures["figures"] = _dicts(self.figures)
        figures["labels"] = [label.to_dict() for label in self.labels]
        figures["groups"] = {
            name: [{"value": value} | macro.to_dict() for value, macro in values.items()]
            for name, values in self.groups.items()
        }
        return figures


def macro_auroc(scored: Scored) -> float | None:
    """The mean AUROC over labels, without those that lack a class; ``None`` if all do."""
    found = _points(scored)
    return _mean(found)


def evaluate(scored: Scored, *, seed: int) -> Evaluation:
    """Every figure of the final test, intervals from 1,000 redraws of patients by ``seed``."""
    macro, labels = _measured(scored, seed)
    labels, figures = _figured(scored, labels, seed)
    return Evaluation(
        task=scored.task,
        macro=macro,
        labels=labels,
        figures=figures,
        groups={
            name: {
                value: _measured(scored.part(column == value), seed)[0]
                for value in in_order(np.unique(column).tolist())
            }
            for name, column in scored.groups.items()
        },
    )


def usable(task: Task, labels: NDArray[np.int64], patients: NDArray[np.int64]) -> bool:
    """Whether some label can be measured: both classes are there, and two patients."""
    columns = targets(task, labels).T
    both = any((column == 1).any() and (column == 0).any() for column in columns)
    return both and np.unique(patients).size > 1


def in_order(values: Sequence[str]) -> list[str]:
    """Values of a group as a reader expects them: intervals by their start, the unknown last.

    >>> in_order([">=60", "unknown", "0-30", "100-120", "30-60", "<0"])
    ['<0', '0-30', '30-60', '100-120', '>=60', 'unknown']
    """

    def place(value: str) -> tuple[bool, int, float, str]:
        number = re.match(r"(<|>=)?(-?\d+(?:\.\d+)?)", value)
        if number is None:
            return (value == "unknown", 2, 0.0, value)
        return (False, {"<": -1, ">=": 1}.get(number[1], 0), float(number[2]), value)

    return sorted(values, key=place)


def _points(scored: Scored) -> list[float | None]:
    """The AUROC of each label, if it has one."""
    columns = zip(scored.targets.T, scored.scores.T, strict=True)
    return [_measure(labels, scores) for labels, scores in columns]


def _measure(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float | None:
    known = labels != UNKNOWN
    if not (labels == 1).any() or not (labels == 0).any():
        return None
    return auroc(labels[known], scores[known])


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _measured(scored: Scored, seed: int) -> tuple[Macro, tuple[LabelFigures, ...]]:
    """The mean over labels, and each label on its own."""
    points = _points(scored)
    if scored.num_patients < 2:  # no interval, so no figure either
        points = [None] * len(points)
    intervals: list[Interval | None] = [None] * len(points)
    macro_interval = None
    places = [place for place, point in enumerate(points) if point is not None]
    if places:
        answers = scored.targets
        rankings = [Ranking.of(answers[:, place], scored.scores[:, place]) for place in places]
        found = auroc_intervals(rankings, scored.patients, seed=seed)
        macro_interval = found.macro
        for place, interval in zip(places, found.labels, strict=True):
            intervals[place] = interval
    labels = tuple(
        _label(scored, place, point, interval)
        for place, (point, interval) in enumerate(zip(points, intervals, strict=True))
    )
    measured = [label for label in labels if label.auroc is not None]
    macro = Macro(
        auroc=_mean(points),
        auroc_ci95=macro_interval,
        left_out=tuple(label.name for label in labels if label.auroc is None),
        num_patients_of_class=max(
            (min(one.num_positive_patients, one.num_negative_patients) for one in measured),
            default=0,
        ),
        num_patients=scored.num_patients,
        num_images=len(scored.labels),
    )
    return macro, labels


def _figured(
    scored: Scored, labels: tuple[LabelFigures, ...], seed: int
) -> tuple[tuple[LabelFigures, ...], Mapping[Figure, Estimate]]:
    """The labels with figures beside their AUROC, and the means of these figures."""
    if scored.num_patients < 2:
        return labels, {}
    measures = [scored.measure(place) for place in range(len(labels))]
    supports = [scored.support(place) for place in range(len(labels))]
    binned = [measure.binned for measure in measures]

    def by_label(counts: Counts) -> Values:
        return np.stack([one(counts, FIGURES) for one in measures], axis=1)

    curves = [one.shares for one in binned if one is not None]
    draws = redrawn([by_label, *curves], scored.patients, seed=seed)
    (points,) = by_label(np.ones((1, len(scored.labels)), dtype=np.int64))
    shares = iter(draws[1:])
    figured = tuple(
        replace(
            label,
            threshold=scored.threshold(place),
            figures={
                figure: Estimate.of(
                    float(points[place, column]),
                    draws[0][:, place, column],
                    few=figure.too_few(supports[place]),
                )
                for column, figure in enumerate(FIGURES)
            },
            ece_if_calibrated=None if bins is None else bins.error_if_calibrated,
            reliability=() if bins is None else bins.curve(next(shares)),
        )
        for place, (label, bins) in enumerate(zip(labels, binned, strict=True))
    )
    means: dict[Figure, Estimate] = {}
    for column, figure in enumerate(FIGURES):
        few = [figure.too_few(support) for support in supports]
        means[figure] = Estimate.of(
            float(nan_mean(points[:, column])),
            nan_mean(draws[0][:, :, column]),
            few=few[0] if all(few) else None,
        )
    return figured, means


def nan_mean(values: Values) -> Values:
    """The mean over the last axis, without NaN; NaN where there is nothing else."""
    found = np.isfinite(values)
    total, number = np.where(found, values, 0.0).sum(axis=-1), found.sum(axis=-1)
    return np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)


def _label(
    scored: Scored, place: int, point: float | None, interval: Interval | None
) -> LabelFigures:
    labels, scores = scored.targets[:, place], scored.scores[:, place]
    known = labels != UNKNOWN
    positive = labels == 1
    return LabelFigures(
        name=scored.task.names[place],
        num_images=int(known.sum()),
        num_positive=int(positive.sum()),
        num_positive_patients=np.unique(scored.patients[positive]).size,
        num_negative_patients=np.unique(scored.patients[labels == 0]).size,
        auroc=point,
        auroc_ci95=interval,
        auprc=None if point is None else average_precision(positive[known], scores[known]),
        auprc_negative=None
        if point is None
        else average_precision(~positive[known], -scores[known]),
    )


def _dicts(figures: Mapping[Figure, Estimate]) -> dict[str, object]:
    return {figure.value: estimate.to_dict() for figure, estimate in figures.items()}


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
