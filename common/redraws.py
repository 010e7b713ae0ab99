"""Bootstrap samples of patients, and what is measured in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.task import UNKNOWN

Patients = Sequence[object] | NDArray[np.generic]
Interval = tuple[float, float]
Counts = NDArray[np.int64]
Values = NDArray[np.float64]
Statistic = Callable[[Counts], Values]
"""From (B, N), how often each image is in each sample, to (B, ...), NaN where there is none."""

NUM_REDRAWS = 1000

_BLOCK_NUMBERS = 2**21  # held at once for the rows of a block of redraws: 16 MB


def row_counts(patients: Patients, *, seed: int) -> Iterator[NDArray[np.int64]]:
    """Bootstrap samples without end, each of as many patients as there are.

    A patient drawn k times brings all its images k times: images of one patient resemble each
    other, and redrawing images would pretend to more evidence than there is (cluster bootstrap:
    Field and Welsh 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x). The same patients and
    seed give the same samples, whatever is measured on them, so labels and models can be compared
    on shared ones.

    Args:
        patients: (N,), whose image it is; any values that can be compared.
        seed: decides the samples.

    Yields:
        (B, N), how often each image is in each of the next B samples.

    Raises:
        ValueError: fewer than two patients.
    """
    _, patient_of_row = np.unique(np.asarray(patients), return_inverse=True)
    num_patients = int(patient_of_row.max(initial=-1)) + 1
    if num_patients < 2:
        raise ValueError("patients: at least 2 are needed to redraw them")
    rng = np.random.default_rng(seed)
    in_block = min(100, max(1, _BLOCK_NUMBERS // patient_of_row.size))
    while True:
        drawn = rng.integers(num_patients, size=(in_block, num_patients))
        drawn += num_patients * np.arange(in_block)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(in_block, -1)
        yield counts[:, patient_of_row]


def redrawn(
    statistics: Sequence[Statistic],
    patients: Patients,
    *,
    num_redraws: int = NUM_REDRAWS,
    seed: int,
) -> list[Values]:
    """Several statistics in the same bootstrap samples of patients.

    Every statistic is asked about every sample, so differences between them can be taken sample by
    sample, also between calls with the same patients and seed. Nothing is drawn anew where a
    statistic has no value.

    Args:
        statistics: each is asked with some samples at a time.
        patients: (N,), whose image it is.
        num_redraws: R.
        seed: decides the samples, as in `row_counts`.

    Returns:
        For each statistic (R, ...).

    Raises:
        ValueError: fewer than two patients, or ``num_redraws`` below 1.
    """
    if num_redraws < 1:
        raise ValueError(f"num_redraws={num_redraws}: must be at least 1")
    found: list[list[Values]] = [[] for _ in statistics]
    num_drawn = 0
    for block in row_counts(patients, seed=seed):
        counts = block[: num_redraws - num_drawn]
        for values, statistic in zip(found, statistics, strict=True):
            values.append(statistic(counts))
        num_drawn += len(counts)
        if num_drawn >= num_redraws:
            break
    return [np.concatenate(values) for values in found]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ranking:
    """Images of which a label is known, in order of their scores.

    Attributes:
        rows: (K,) where they stand in the cohort.
        positive: (K,) their labels.
        tied_from: where each run of equal scores begins.
    """

    rows: NDArray[np.intp]
    positive: NDArray[np.bool_]
    tied_from: NDArray[np.intp]

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike) -> Ranking:
        """The ranking of (N,) labels 0, 1 or -1 (unknown) by (N,) finite scores."""
        label_values = np.asarray(labels)
        score_values = np.asarray(scores, dtype=np.float64)
        known = np.flatnonzero(label_values != UNKNOWN)
        rows = known[np.argsort(score_values[known], kind="stable")]
        starts = np.flatnonzero(np.diff(score_values[rows])) + 1
        return cls(
            rows=rows,
            positive=label_values[rows] == 1,
            tied_from=np.concatenate([np.zeros(min(1, rows.size), dtype=np.intp), starts]),
        )

    @property
    def has_both_classes(self) -> bool:
        """Whether there is an AUROC at all."""
        return bool(self.positive.any()) and not bool(self.positive.all())

    def aurocs(self, counts: Counts) -> Values:
        """(B,) AUROC in each of B samples, NaN where a class is missing: `Runs.aurocs`.

        Args:
            counts: (B, N), how often each image is in each sample.
        """
        return self.runs(counts).aurocs()

    def runs(self, counts: Counts) -> Runs:
        """What B samples hold of each run of equal scores.

        Args:
            counts: (B, N), how often each image is in each sample.
        """
        drawn = counts[:, self.rows]
        positives = drawn * self.positive
        if self.tied_from.size < self.rows.size:
            positives = np.add.reduceat(positives, self.tied_from, axis=1)
            drawn = np.add.reduceat(drawn, self.tied_from, axis=1)
        return Runs(positives=positives, drawn=drawn)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runs:
    """Samples of images in T runs of equal scores, from the lowest score upwards.

    Attributes:
        positives: (B, T), how many images with the label each sample holds of each run.
        drawn: (B, T), how many images altogether.
    """

    positives: Counts
    drawn: Counts

    def aurocs(self) -> Values:
        """(B,), NaN where a class is missing.

        The Mann-Whitney statistic of `common.metrics.auroc`, with every image counted as often as
        it was drawn; exact, since it divides whole numbers.
        """
        negatives = self.drawn - self.positives
        below = negatives.cumsum(axis=1)
        won_twice = (self.positives * (2 * below - negatives)).sum(axis=1)
        pairs = self.positives.sum(axis=1) * below[:, -1]
        missing = np.full(len(pairs), np.nan)
        return np.divide(won_twice, 2 * pairs, out=missing, where=pairs > 0)

    def average_precisions(self, *, of_negatives: bool = False) -> Values:
        """(B,) area under the precision-recall steps, NaN where a class is missing.

        `common.metrics.average_precision` with every image counted as often as it was drawn.

        Args:
            of_negatives: whether the label's absence is what is looked for, from the lowest score
                upwards.
        """
        sought, drawn = self.positives, self.drawn
        if of_negatives:
            sought = drawn - sought
        else:
            sought, drawn = sought[:, ::-1], drawn[:, ::-1]
        hits, seen = sought.cumsum(axis=1), drawn.cumsum(axis=1)
        area, num_sought = (sought * (hits / np.maximum(seen, 1))).sum(axis=1), hits[:, -1]
        both = (num_sought > 0) & (num_sought < seen[:, -1])
        return np.divide(area, num_sought, out=np.full(len(area), np.nan), where=both)


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """Percentile intervals from shared samples: of each label, and of the mean over labels."""

    labels: tuple[Interval, ...]
    macro: Interval


def auroc_intervals(
    rankings: Sequence[Ranking],
    patients: Patients,
    *,
    num_redraws: int = NUM_REDRAWS,
    seed: int,
    confidence: float = 0.95,
) -> Intervals:
    """Intervals of AUROCs when patients, not images, are redrawn.

    All labels share the samples. A sample without both classes of a label has no AUROC of it: the
    label's interval is made of the first ``num_redraws`` samples that have one, and the mean over
    labels in a sample is over those that have one there. So intervals are conditional on both
    classes being present. That ends soon: even with one patient of each class, 0.3996 of the
    samples hold both (1 - 2/e + 1/e^2, the limit for many patients).

    The interval speaks of the patients drawn, not of the randomness of training. With fewer than
    about ten patients of a class it is too narrow; `tests/common/test_redraws.py` measures how
    often it holds the truth.

    Args:
        rankings: at least one, each with both classes.
        patients: (N,), whose image it is; any values that can be compared.
        num_redraws: samples that each interval is made of.
        seed: decides the samples.
        confidence: coverage aimed at, between 0 and 1.

    Raises:
        ValueError: a label lacks a class, fewer than two patients, or an argument out of bounds.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1")
    if num_redraws < 1:
        raise ValueError(f"num_redraws={num_redraws}: must be at least 1")
    if not rankings or not all(ranking.has_both_classes for ranking in rankings):
        raise ValueError("labels: both classes of each are needed")
    blocks: list[NDArray[np.float64]] = []
    num_found = np.zeros(len(rankings), dtype=np.int64)
    for counts in row_counts(patients, seed=seed):
        block = np.stack([ranking.aurocs(counts) for ranking in rankings], axis=1)
        blocks.append(block)
        num_found += np.isfinite(block).sum(axis=0)
        if num_found.min() >= num_redraws:
            break
    found = np.concatenate(blocks)
    some = found[np.isfinite(found).any(axis=1)][:num_redraws]
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)

    def interval(figures: NDArray[np.float64]) -> Interval:
        low, high = np.quantile(figures[:num_redraws], tails)
        return float(low), float(high)

    return Intervals(
        labels=tuple(interval(label[np.isfinite(label)]) for label in found.T),
        macro=interval(np.nanmean(some, axis=1)),
    )
