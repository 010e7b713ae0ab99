"""How well scores tell malignant from benign, and how sure that is.

Everything here reads held-out patients without a privacy mechanism: what these functions return
about private patients must not leave a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metric = Callable[[NDArray[np.bool_], NDArray[np.float64]], float]
Patients = Sequence[object] | NDArray[np.generic]


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Both arrays as vectors of one length, labels as booleans; ValueError otherwise."""
    label_values, score_values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label_values.ndim != 1 or label_values.shape != score_values.shape:
        raise ValueError(
            f"labels {label_values.shape} and scores {score_values.shape}: must be two vectors "
            "of the same length"
        )
    if not np.isfinite(score_values).all():
        num_bad = int(np.count_nonzero(~np.isfinite(score_values)))
        raise ValueError(
            f"scores: {num_bad} of {score_values.size} are NaN or infinite; the model may have "
            "diverged, try a smaller learning rate"
        )
    if label_values.dtype != np.bool_ and not np.isin(label_values, (0, 1)).all():
        raise ValueError("labels: must be 0 or 1")
    positive = label_values.astype(np.bool_)
    if positive.all() or not positive.any():
        raise ValueError(
            f"labels: {int(positive.sum())} positive of {positive.size}; both classes are needed"
        )
    return positive, score_values


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive scores above a negative; a tie counts one half.

    The Mann-Whitney statistic (Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747).

    Args:
        labels: (N,), 0 or 1.
        scores: (N,), larger means more likely positive.

    Raises:
        ValueError: lengths differ, a score is not finite, or one class only.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    positive, values = _checked(labels, scores)
    negatives = np.sort(values[~positive])
    positives = values[positive]
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float((below + not_above).sum() / (2 * positives.size * negatives.size))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall steps, without interpolation.

    The sum over thresholds of (recall gained) x (precision there), as scikit-learn's
    ``average_precision_score``; equal scores are one threshold. Guessing gives the share of
    positives, so the figure of one class is not comparable with that of the other.

    Args:
        labels: (N,), 0 or 1.
        scores: (N,), larger means more likely positive.

    Raises:
        ValueError: lengths differ, a score is not finite, or one class only.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    positive, values = _checked(labels, scores)
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(positive[order])
    thresholds = np.append(np.flatnonzero(np.diff(values[order])), values.size - 1)
    true_positives = hits[thresholds]
    gained = np.diff(true_positives, prepend=0)
    return float((gained * true_positives / (thresholds + 1)).sum() / hits[-1])


def patient_redraws(
    labels: ArrayLike, patients: Patients, *, num_redraws: int, seed: int
) -> Iterator[NDArray[np.intp]]:
    """Rows of ``num_redraws`` bootstrap samples, each of as many patients as there are.

    A patient drawn k times brings all its images k times. A sample with one class only has no
    AUROC and is drawn anew, so intervals are conditional on both classes being present. That ends
    soon: even with one patient of each class, 0.3996 of the samples hold both (1 - 2/e + 1/e^2, the
    limit for many patients). The same seed gives the same samples, so two models can be compared
    on shared ones.

    Raises:
        ValueError: lengths differ, fewer than two patients, or one class only.
    """
    positive = np.asarray(labels).astype(np.bool_)
    if len(patients) != positive.size:
        raise ValueError(f"patients: {len(patients)} for {positive.size} images")
    _, patient_of_row = np.unique(np.asarray(patients), return_inverse=True)
    num_images = np.bincount(patient_of_row)
    if num_images.size < 2:
        raise ValueError("patients: at least 2 are needed to redraw them")
    if positive.all() or not positive.any():
        raise ValueError("labels: both classes are needed")
    rows = np.argsort(patient_of_row, kind="stable")
    ends: list[int] = np.cumsum(num_images).tolist()
    rows_by_patient = [rows[start:end] for start, end in pairwise([0, *ends])]
    rng = np.random.default_rng(seed)
    num_done = 0
    while num_done < num_redraws:
        drawn: list[int] = rng.integers(num_images.size, size=num_images.size).tolist()
        sample = np.concatenate([rows_by_patient[patient] for patient in drawn])
        if 0 < np.count_nonzero(positive[sample]) < sample.size:
            num_done += 1
            yield sample


def bootstrap_interval(
    metric: Metric,
    labels: ArrayLike,
    scores: ArrayLike,
    patients: Patients,
    *,
    num_redraws: int = 1000,
    seed: int,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of ``metric`` when patients, not images, are redrawn.

    Images of one patient resemble each other; redrawing images would pretend to more evidence
    than there is (cluster bootstrap: Field and Welsh 2007,
    https://doi.org/10.1111/j.1467-9868.2007.00593.x). The interval speaks of the patients drawn,
    not of the randomness of training.

    Args:
        metric: maps labels (N,) and scores (N,) to a number.
        labels: (N,), 0 or 1.
        scores: (N,), larger means more likely positive.
        patients: (N,), whose image it is; any values that can be compared.
        num_redraws: bootstrap samples, see `patient_redraws` for those with one class.
        seed: decides the samples.
        confidence: coverage aimed at, between 0 and 1.

    Raises:
        ValueError: as `auroc` and `patient_redraws`, or an argument out of bounds.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1")
    if num_redraws < 1:
        raise ValueError(f"num_redraws={num_redraws}: must be at least 1")
    positive, values = _checked(labels, scores)
    redraws = patient_redraws(positive, patients, num_redraws=num_redraws, seed=seed)
    figures = [metric(positive[rows], values[rows]) for rows in redraws]
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a model did on held-out patients; every field is derived from those patients.

    ``auprc_benign`` takes benign as the class to find. ``auroc_ci95`` is the patient-level
    bootstrap interval.
    """

    auroc: float
    auroc_ci95: tuple[float, float]
    auprc_malignant: float
    auprc_benign: float
    num_patients: int
    num_images: int

    def to_dict(self) -> dict[str, object]:
        """The ``final.test`` of result.json."""
        return {
            "auroc": self.auroc,
            "auroc_ci95": list(self.auroc_ci95),
            "auprc_malignant": self.auprc_malignant,
            "auprc_benign": self.auprc_benign,
            "num_patients": self.num_patients,
            "num_images": self.num_images,
        }


def evaluate(labels: ArrayLike, scores: ArrayLike, patients: Patients, *, seed: int) -> Evaluation:
    """Every figure of the final test, with 1,000 patient-level redraws from ``seed``.

    Args:
        labels: (N,), 1 malignant, 0 benign.
        scores: (N,), larger means more likely malignant.
        patients: (N,), whose image it is.
        seed: decides the bootstrap samples.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    positive, values = _checked(labels, scores)
    return Evaluation(
        auroc=auroc(positive, values),
        auroc_ci95=bootstrap_interval(auroc, positive, values, patients, seed=seed),
        auprc_malignant=average_precision(positive, values),
        auprc_benign=average_precision(~positive, -values),
        num_patients=len(set(patients)),
        num_images=positive.size,
    )
