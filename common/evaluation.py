"""How a model did on held-out patients: by label, on average, and by group of patients.

Everything here reads held-out patients without a privacy mechanism: what it returns about private
patients must not leave a site. No figure depends on a threshold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.config import TaskKind
from common.metrics import auroc, average_precision
from common.redraws import Interval, Ranking, auroc_intervals
from common.task import UNKNOWN, Task


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """What a model said about held-out images; all but ``task`` is derived from patients.

    Attributes:
        task: what the labels mean.
        labels: (N,) class numbers, or of a multi-label task (N, L) 0, 1 or -1 (unknown).
        scores: (N, L), larger means that the name of the task in that place is more likely.
        patients: (N,), whose image it is.
        groups: by name, such as ``"sex"``, (N,) values.

    Raises:
        ValueError: shapes do not fit, or a score is not finite.
    """

    task: Task
    labels: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    patients: NDArray[np.int64] = field(repr=False)
    groups: Mapping[str, NDArray[np.str_]] = field(
        default_factory=dict[str, NDArray[np.str_]], repr=False
    )

    def __post_init__(self) -> None:
        num_images = len(self.labels)
        vectors = (self.patients, *self.groups.values())
        if any(vector.shape != (num_images,) for vector in vectors):
            raise ValueError(f"patients and groups: must be vectors of {num_images} values")
        expected = targets(self.task, self.labels).shape
        if self.scores.shape != expected:
            raise ValueError(f"scores {self.scores.shape}: must be {expected} for these labels")
        num_bad = int(np.count_nonzero(~np.isfinite(self.scores)))
        if num_bad:
            raise ValueError(
                f"scores: {num_bad} of {self.scores.size} are NaN or infinite; the model may have "
                "diverged, try a smaller learning rate"
            )

    @property
    def targets(self) -> NDArray[np.int64]:
        """(N, L), see `targets`."""
        return targets(self.task, self.labels)

    @property
    def num_patients(self) -> int:
        """How many patients the images are of."""
        return np.unique(self.patients).size

    def part(self, rows: NDArray[np.bool_]) -> Scored:
        """The chosen images alone, without groups."""
        return Scored(
            task=self.task,
            labels=self.labels[rows],
            scores=self.scores[rows],
            patients=self.patients[rows],
        )


def targets(task: Task, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, L) one question with a yes (1), no (0) or unknown (-1) for each name of the task.

    Of a multi-class task: is it this class, or one of the rest?

    Raises:
        ValueError: the labels are not those of such a task.
    """
    values = np.asarray(labels, dtype=np.int64)
    match task.kind:
        case TaskKind.binary:
            shape, highest, lowest = (len(values),), 1, 0
        case TaskKind.multiclass:
            shape, highest, lowest = (len(values),), len(task.names) - 1, 0
        case TaskKind.multilabel:
            shape, highest, lowest = (len(values), len(task.names)), 1, UNKNOWN
    if values.shape != shape:
        raise ValueError(f"labels {values.shape}: must be {shape} for a {task.kind.value} task")
    if values.size and not lowest <= values.min() <= values.max() <= highest:
        raise ValueError(f"labels: must lie between {lowest} and {highest}")
    if task.kind is TaskKind.multiclass:
        return (values[:, None] == np.arange(len(task.names))).astype(np.int64)
    return values.reshape(len(values), -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFigures:
    """One label among the images of which it is known.

    AUROC and its interval, ``auprc`` (looking for it) and ``auprc_negative`` (looking for its
    absence) are ``None`` where a class is missing, or all images are of one patient.
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
    """

    task: Task
    macro: Macro
    labels: tuple[LabelFigures, ...]
    groups: Mapping[str, Mapping[str, Macro]]

    def to_dict(self) -> dict[str, object]:
        """The ``final.test`` of result.json."""
        figures = self.macro.to_dict()
        if self.task.kind is TaskKind.binary:
            (label,) = self.labels
            figures |= {"auprc_malignant": label.auprc, "auprc_benign": label.auprc_negative}
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
    return Evaluation(
        task=scored.task,
        macro=macro,
        labels=labels,
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


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
