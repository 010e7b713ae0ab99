"""A model's answers about held-out images, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.config import TaskKind
from common.estimate import Support
from common.figures import Measure
from common.task import UNKNOWN, Task
from common.thresholds import youden_threshold


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """What a model said about held-out images; all but ``task`` is derived from patients.

    Attributes:
        task: what the labels mean.
        labels: (N,) class numbers, or of a multi-label task (N, L) 0, 1 or -1 (unknown).
        scores: (N, L), larger means that the name of the task in that place is more likely.
        patients: (N,), whose image it is.
        groups: by name, such as ``"sex"``, (N,) values.
        thresholds: of each name of the task, the score from which on the answer is yes, chosen on
            other images; ``None`` where there is none.

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
    thresholds: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        num_images = len(self.labels)
        vectors = (self.patients, *self.groups.values())
        if any(vector.shape != (num_images,) for vector in vectors):
            raise ValueError(f"patients and groups: must be vectors of {num_images} values")
        expected = targets(self.task, self.labels).shape
        if self.scores.shape != expected:
            raise ValueError(f"scores {self.scores.shape}: must be {expected} for these labels")
        if self.thresholds and len(self.thresholds) != expected[1]:
            raise ValueError(f"thresholds: {len(self.thresholds)}, one for each of {expected[1]}")
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

    def threshold(self, place: int) -> float | None:
        """That of the name in this place of the task."""
        return self.thresholds[place] if self.thresholds else None

    def measure(self, place: int, rows: NDArray[np.bool_] | None = None) -> Measure:
        """The figures of the name in this place, among all images or (N,) chosen ones."""
        answers, scores = self.targets[:, place], self.scores[:, place]
        return Measure.of(answers, scores, self.threshold(place), rows)

    def support(self, place: int, rows: NDArray[np.bool_] | None = None) -> Support:
        """The patients behind these figures."""
        answers = self.targets[:, place]
        return Support.of(answers if rows is None else np.where(rows, answers, -1), self.patients)

    def part(self, rows: NDArray[np.bool_]) -> Scored:
        """The chosen images alone, without groups."""
        return Scored(
            task=self.task,
            labels=self.labels[rows],
            scores=self.scores[rows],
            patients=self.patients[rows],
            thresholds=self.thresholds,
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


def youden_thresholds(scored: Scored) -> tuple[float | None, ...]:
    """One for each name of the task, by Youden's index on these images (use validation images)."""
    columns = zip(scored.targets.T, scored.scores.T, strict=True)
    return tuple(youden_threshold(answers, scores) for answers, scores in columns)
