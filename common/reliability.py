"""Whether probabilities mean what they say: of images scored 0.3, do 3 in 10 have the label?

The bins are of the probability of the label itself, not of the larger of two classes. Everything
here reads held-out patients without a privacy mechanism.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.estimate import Estimate, Unsaid
from common.redraws import Counts, Values

EQUAL_MASS_BINS = 10
EQUAL_WIDTH_BINS = 15


def equal_width_bins(
    probabilities: ArrayLike, num_bins: int = EQUAL_WIDTH_BINS
) -> NDArray[np.intp]:
    """(N,) the bin of each probability, all bins of one width (Guo et al. 2017).

    A bin holds its upper end, as in scikit-learn's ``calibration_curve``; the first holds 0 too.
    https://proceedings.mlr.press/v70/guo17a.html

    >>> equal_width_bins([0.0, 0.2, 0.5, 0.51, 1.0], num_bins=2).tolist()
    [0, 0, 0, 1, 1]
    """
    inner = np.linspace(0.0, 1.0, num_bins + 1)[1:-1]
    return np.searchsorted(inner, np.asarray(probabilities, dtype=np.float64))


def equal_mass_bins(probabilities: ArrayLike, num_bins: int = EQUAL_MASS_BINS) -> NDArray[np.intp]:
    """(N,) the bin of each probability, cut at quantiles so that bins hold equally many.

    Less biased than equal widths where images are few (Roelofs et al. 2022,
    https://proceedings.mlr.press/v151/roelofs22a.html). Equal probabilities share a bin, so many
    of them leave other bins empty.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    inner = np.quantile(values, np.linspace(0.0, 1.0, num_bins + 1)[1:-1]) if values.size else ()
    return np.searchsorted(inner, values)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Binned:
    """Images with a known label and a probability, sorted into bins that redraws keep.

    Attributes:
        rows: (K,) where they stand in the cohort.
        positive: (K,) 1 with the label, else 0.
        probabilities: (K,).
        members: (K, M) 1 where an image is in a bin, else 0.
    """

    rows: NDArray[np.intp]
    positive: Values
    probabilities: Values
    members: Values

    @classmethod
    def of(
        cls,
        rows: NDArray[np.intp],
        positive: NDArray[np.bool_],
        probabilities: Values,
        bins: NDArray[np.intp],
    ) -> Binned:
        """Of K images, each with the number of its bin."""
        num_bins = int(bins.max(initial=0)) + 1
        return cls(
            rows=rows,
            positive=positive.astype(np.float64),
            probabilities=probabilities,
            members=(bins[:, None] == np.arange(num_bins)).astype(np.float64),
        )

    def errors(self, counts: Counts) -> Values:
        """(B,) expected calibration error in each of B samples.

        The mean over images of the distance, within the image's bin, between the share with the
        label and the mean probability: the sum over bins of ``|sum(label - probability)| / N``
        (Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602).
        """
        drawn = counts[:, self.rows].astype(np.float64)
        residuals = self.members * (self.positive - self.probabilities)[:, None]
        total = drawn.sum(axis=1)
        found = np.abs(drawn @ residuals).sum(axis=1)
        return np.divide(found, total, out=np.full(len(counts), np.nan), where=total > 0)

    def shares(self, counts: Counts) -> Values:
        """(B, M) share with the label in each bin, NaN in an empty one."""
        drawn = counts[:, self.rows].astype(np.float64)
        total = drawn @ self.members
        found = drawn @ (self.members * self.positive[:, None])
        return np.divide(found, total, out=np.full(total.shape, np.nan), where=total > 0)

    @property
    def error_if_calibrated(self) -> float | None:
        """The error to expect of these probabilities if each were exactly right.

        Even then chance leaves an error, the larger the fewer images; a measured one says
        something by what it has on top. Each bin's sum is taken as normal: the mean of its
        absolute value is ``sqrt(2 / pi * sum(p (1 - p)))``. Images are taken as independent; those
        of one patient are not, which makes this figure too small.
        """
        if not self.rows.size:
            return None
        variance = (self.probabilities * (1 - self.probabilities)) @ self.members
        return float(np.sqrt(2 / math.pi * variance).sum() / self.rows.size)

    def curve(self, draws: Values) -> tuple[Point, ...]:
        """The points of a reliability curve, from (R, M) `shares` in redraws."""
        sizes = self.members.sum(axis=0)
        means = self.probabilities @ self.members / np.maximum(sizes, 1)
        observed = self.positive @ self.members / np.maximum(sizes, 1)
        return tuple(
            Point(
                num_images=int(size),
                predicted=float(mean),
                observed=Estimate.of(float(share), draws[:, place]),
            )
            for place, (size, mean, share) in enumerate(zip(sizes, means, observed, strict=True))
            if size
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One bin of a reliability curve; derived from patients.

    Attributes:
        num_images: in the bin.
        predicted: mean probability.
        observed: share with the label.
    """

    num_images: int
    predicted: float
    observed: Estimate

    def to_dict(self) -> dict[str, object]:
        """As result.json holds it; too wide an interval is there to be seen."""
        found = self.observed.to_dict()
        if self.observed.unsaid is Unsaid.interval_too_wide:
            found["unsaid"] = None
        return {"num_images": self.num_images, "predicted": self.predicted, "observed": found}
