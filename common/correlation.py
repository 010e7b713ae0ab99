"""Pearson's r between figures of several labels or several models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special  # pyright: ignore[reportMissingTypeStubs]

from common.redraws import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """How far two figures lie on a line.

    Attributes:
        r: Pearson's coefficient; ``None`` with fewer than 3 pairs or where one figure is constant.
        p_value: two-sided, for no correlation, from Student's t; ``None`` likewise.
        ci95: by Fisher's transform; ``None`` with fewer than 4 pairs too.
        num_pairs: how many were used.
        left_out: how many were not finite, such as an infinite epsilon.
    """

    r: float | None
    p_value: float | None
    ci95: Interval | None
    num_pairs: int
    left_out: int

    def to_dict(self) -> dict[str, object]:
        """As plain JSON."""
        return {
            "r": self.r,
            "p_value": self.p_value,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "num_pairs": self.num_pairs,
            "left_out": self.left_out,
        }


def pearson(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Correlation of two figures of the same labels, or of the same models.

    The interval and the p-value take the pairs as independent and normal. Labels of the same
    images are not independent: with the eight to fourteen labels of a study, look at the points.

    Args:
        first: one figure of each; a pair that is not finite is left out.
        second: the other figure, in the same order.

    Raises:
        ValueError: lengths differ.
    """
    pairs = np.array(list(zip(first, second, strict=True)), dtype=np.float64).reshape(-1, 2)
    finite = pairs[np.isfinite(pairs).all(axis=1)]
    num_pairs, left_out = len(finite), len(pairs) - len(finite)
    centred = finite - finite.mean(axis=0) if num_pairs else finite
    lengths = np.sqrt((centred**2).sum(axis=0))
    scale = np.abs(finite).max(initial=0.0)
    if num_pairs < 3 or lengths.min() <= 1e-12 * scale:
        return Correlation(r=None, p_value=None, ci95=None, num_pairs=num_pairs, left_out=left_out)
    r = float(np.clip((centred / lengths).prod(axis=1).sum(), -1.0, 1.0))
    return Correlation(
        r=r,
        p_value=_p_value(r, num_pairs),
        ci95=_fisher_interval(r, num_pairs) if num_pairs > 3 else None,
        num_pairs=num_pairs,
        left_out=left_out,
    )


def _p_value(r: float, num_pairs: int) -> float:
    """Of ``t = r sqrt((n - 2) / (1 - r^2))`` with n - 2 degrees of freedom."""
    if abs(r) == 1.0:
        return 0.0
    freedom = num_pairs - 2
    t = abs(r) * math.sqrt(freedom / ((1 - r) * (1 + r)))
    return float(2 * scipy.special.stdtr(freedom, -t))


def _fisher_interval(r: float, num_pairs: int) -> Interval:
    """``tanh(atanh r ± 1.96 / sqrt(n - 3))`` (Fisher 1921)."""
    if abs(r) == 1.0:
        return r, r
    half = float(scipy.special.ndtri(0.975)) / math.sqrt(num_pairs - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCorrelations:
    """The figures of Tayebi Arasteh et al. 2024 over labels (arXiv 2302.01622).

    Attributes:
        drop_and_auroc: AUROC lost under privacy, against the AUROC without it.
        drop_and_samples: AUROC lost under privacy, against the number of samples.
        auroc_and_samples: AUROC without privacy, against the number of samples.
        private_auroc_and_samples: AUROC under privacy, against the number of samples.
    """

    drop_and_auroc: Correlation
    drop_and_samples: Correlation
    auroc_and_samples: Correlation
    private_auroc_and_samples: Correlation


def over_labels(
    aurocs: Mapping[str, float | None],
    private_aurocs: Mapping[str, float | None],
    num_samples: Mapping[str, int],
) -> LabelCorrelations:
    """Which labels lose most under privacy.

    The drop is ``AUROC - private AUROC``. It is made of the AUROC it is compared with, so chance in
    the latter alone makes ``drop_and_auroc`` positive.

    Args:
        aurocs: of each label without privacy; ``None``: it could not be measured.
        private_aurocs: of the same labels.
        num_samples: of the same labels, images with the label; say whether in training or test.

    Raises:
        ValueError: the labels differ.
    """
    names = sorted(aurocs)
    if names != sorted(private_aurocs) or names != sorted(num_samples):
        raise ValueError("labels: all three must be about the same ones")
    plain, private = (
        [math.nan if (value := found[name]) is None else value for name in names]
        for found in (aurocs, private_aurocs)
    )
    drops = [one - other for one, other in zip(plain, private, strict=True)]
    samples = [float(num_samples[name]) for name in names]
    return LabelCorrelations(
        drop_and_auroc=pearson(drops, plain),
        drop_and_samples=pearson(drops, samples),
        auroc_and_samples=pearson(plain, samples),
        private_auroc_and_samples=pearson(private, samples),
    )


def over_models(epsilons: Sequence[float], gaps: Sequence[float]) -> Correlation:
    """Epsilon of each model against a gap between groups, such as the SPD by sex.

    An infinite epsilon has no place on the line and is left out, and counted as such.
    """
    return pearson(epsilons, gaps)
