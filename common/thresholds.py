"""From a score to yes or no: thresholds chosen on validation images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from common.task import UNKNOWN


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The score from which on to say yes, by Youden's index.

    The largest sensitivity + specificity - 1 (Youden 1950,
    https://doi.org/10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3). Among equals
    the lowest threshold, the one that misses fewest. It is one of the scores, and that score and
    all above it mean yes.

    Choose it on validation images and apply it to others: on the images it was chosen on,
    accuracy, sensitivity and specificity come out too high.

    Args:
        labels: (N,) 0, 1 or -1 (unknown).
        scores: (N,) finite, larger means more likely.

    Returns:
        ``None`` if a class is missing: there is nothing to choose by.

    >>> youden_threshold([0, 0, 1, 1, -1], [0.1, 0.4, 0.35, 0.8, 0.2])
    0.35
    """
    answers, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    known = answers != UNKNOWN
    positive, values = answers[known] == 1, values[known]
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    candidates, place = np.unique(values, return_inverse=True)
    with_label = np.bincount(place, weights=positive, minlength=candidates.size)
    without = np.bincount(place, weights=~positive, minlength=candidates.size)
    hits = with_label[::-1].cumsum()[::-1]
    false_alarms = without[::-1].cumsum()[::-1]
    # Times both class sizes, so that equal indices are equal numbers.
    index = hits * num_negative - false_alarms * num_positive
    return float(candidates[int(index.argmax())])
