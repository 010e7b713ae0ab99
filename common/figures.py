"""The figures of one label, in a sample of images or in many redraws of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.estimate import Support, Unsaid
from common.redraws import Counts, Ranking, Runs, Values
from common.reliability import Binned, equal_mass_bins, equal_width_bins


class Figure(StrEnum):
    """What is measured of a label.

    ``auprc_negative`` looks for the label's absence. ``ece`` has equal-mass bins,
    ``ece_equal_width`` bins of one width. ``calibration_gap`` is the mean probability minus the
    share with the label. From ``accuracy`` on, figures need a threshold.
    """

    auroc = "auroc"
    auprc = "auprc"
    auprc_negative = "auprc_negative"
    brier = "brier"
    ece = "ece"
    ece_equal_width = "ece_equal_width"
    calibration_gap = "calibration_gap"
    accuracy = "accuracy"
    balanced_accuracy = "balanced_accuracy"
    sensitivity = "sensitivity"
    specificity = "specificity"
    f1 = "f1"

    @property
    def lower_is_better(self) -> bool:
        """Whether the figure is an error."""
        return self in _ERRORS

    def too_few(self, support: Support) -> Unsaid | None:
        """Whether so few patients stand behind it that nothing can be said."""
        few = support.too_few(both_sides=self in _OF_BOTH_CLASSES)
        if self is Figure.sensitivity:
            return few or support.too_few_with()
        if self is Figure.specificity:
            return few or support.too_few_without()
        return few


_ERRORS = (Figure.brier, Figure.ece, Figure.ece_equal_width)
_RANKED = (Figure.auroc, Figure.auprc, Figure.auprc_negative)
_CALIBRATION = (*_ERRORS, Figure.calibration_gap)
_OF_BOTH_CLASSES = (*_RANKED, Figure.balanced_accuracy, Figure.f1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measure:
    """One label among those of some images of which it is known.

    Attributes:
        ranking: these images by score.
        scores: (K,) theirs, in that order.
        said: (K,) whether the score reaches the threshold; ``None`` without one.
        binned: in bins of equal mass; ``None`` if the scores are no probabilities.
        binned_by_width: in bins of one width.
    """

    ranking: Ranking
    scores: Values
    said: NDArray[np.bool_] | None
    binned: Binned | None
    binned_by_width: Binned | None

    @classmethod
    def of(
        cls,
        answers: ArrayLike,
        scores: ArrayLike,
        threshold: float | None = None,
        rows: NDArray[np.bool_] | None = None,
    ) -> Measure:
        """Of (N,) answers 0, 1 or -1 (unknown) and finite scores.

        Args:
            answers: of all images of the cohort.
            scores: likewise; probabilities, if calibration is to be measured.
            threshold: this score and all above it mean yes.
            rows: (N,) which images to look at; all by default.
        """
        labels, values = np.asarray(answers), np.asarray(scores, dtype=np.float64)
        ranking = Ranking.of(labels if rows is None else np.where(rows, labels, -1), values)
        ranked = values[ranking.rows]
        binned = [None, None]
        if ((ranked >= 0) & (ranked <= 1)).all():
            binned = [
                Binned.of(ranking.rows, ranking.positive, ranked, bins(ranked))
                for bins in (equal_mass_bins, equal_width_bins)
            ]
        return cls(
            ranking=ranking,
            scores=ranked,
            said=None if threshold is None else ranked >= threshold,
            binned=binned[0],
            binned_by_width=binned[1],
        )

    def __call__(self, counts: Counts, figures: Sequence[Figure]) -> Values:
        """(B, F) the figures asked for in each of B samples, NaN where there is none.

        Args:
            counts: (B, N), how often each image of the cohort is in each sample.
            figures: F of them.
        """
        if not self.ranking.rows.size:
            return np.full((len(counts), len(figures)), np.nan)
        runs = self.ranking.runs(counts) if any(one in _RANKED for one in figures) else None
        table = _Confusion.of(self, counts)
        found: list[Values] = []
        for figure in figures:
            if runs is not None and figure in _RANKED:
                found.append(_ranked(figure, runs))
            elif figure in _CALIBRATION:
                found.append(self._calibration(figure, counts))
            else:
                found.append(table.figure(figure))
        return np.stack(found, axis=1)

    def _calibration(self, figure: Figure, counts: Counts) -> Values:
        if self.binned is None or self.binned_by_width is None:
            return np.full(len(counts), np.nan)
        if figure is Figure.ece:
            return self.binned.errors(counts)
        if figure is Figure.ece_equal_width:
            return self.binned_by_width.errors(counts)
        errors = self.scores - self.ranking.positive
        values = errors**2 if figure is Figure.brier else errors
        drawn = counts[:, self.ranking.rows].astype(np.float64)
        return _share(drawn @ values, drawn.sum(axis=1))


def _ranked(figure: Figure, runs: Runs) -> Values:
    if figure is Figure.auroc:
        return runs.aurocs()
    return runs.average_precisions(of_negatives=figure is Figure.auprc_negative)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Confusion:
    """(B,) numbers of images by what they have and what was said; NaN without a threshold."""

    positives: Values
    negatives: Values
    hits: Values
    rejections: Values

    @classmethod
    def of(cls, measure: Measure, counts: Counts) -> _Confusion:
        if measure.said is None:
            nothing = np.full(len(counts), np.nan)
            return cls(positives=nothing, negatives=nothing, hits=nothing, rejections=nothing)
        positive, said = measure.ranking.positive, measure.said
        kinds = np.stack([positive, ~positive, positive & said, ~positive & ~said], axis=1)
        drawn = counts[:, measure.ranking.rows].astype(np.float64)
        positives, negatives, hits, rejections = (drawn @ kinds.astype(np.float64)).T
        return cls(positives=positives, negatives=negatives, hits=hits, rejections=rejections)

    def figure(self, figure: Figure) -> Values:
        """One of the figures that need a threshold."""
        sensitivity = _share(self.hits, self.positives)
        specificity = _share(self.rejections, self.negatives)
        match figure:
            case Figure.sensitivity:
                return sensitivity
            case Figure.specificity:
                return specificity
            case Figure.balanced_accuracy:
                return (sensitivity + specificity) / 2
            case Figure.f1:
                false_alarms = self.negatives - self.rejections
                return _share(2 * self.hits, self.hits + self.positives + false_alarms)
            case Figure.accuracy:
                return _share(self.hits + self.rejections, self.positives + self.negatives)
            case _:
                raise ValueError(f"figure={figure.value}: does not follow from a threshold")


def _share(part: Values, whole: Values) -> Values:
    """``part / whole``, NaN where there is no whole."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
