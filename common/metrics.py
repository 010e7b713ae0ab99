"""How well scores tell one class from the other.

Everything here reads held-out patients without a privacy mechanism: what these functions return
about private patients must not leave a site.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
