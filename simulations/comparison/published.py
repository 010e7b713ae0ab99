"""What others have published on the same task, for reference beside a comparison.

Osuala et al. 2024, "Enhancing the Utility of Privacy-Preserving Cancer Classification using
Synthetic Data", https://arxiv.org/abs/2407.12669: AUROC on the CBIS-DDSM test masses, mean and
standard deviation over three seeds, from the result sheets that the authors released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STUDY = "cbis_masses"

SOURCE = "Osuala et al. 2024, arXiv:2407.12669"
CAVEAT = (
    "Read them as a reference, not as equals: trained in one place, epsilon by the image and not "
    "by the patient, RDP accountant, delta 1e-4, settings and checkpoints chosen on private data "
    "that no epsilon covers. Wherever synthetic images were used, the generator had seen the "
    "private training set without privacy, so the honest epsilon of those models is infinite."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedPoint:
    """One published figure.

    Attributes:
        setting: in the paper's words, shortened.
        augment: the use of synthetic images here that comes nearest; ``None`` if none does.
        epsilon: as claimed; infinity is training without privacy.
        auroc: mean over three seeds.
        standard_deviation: over three seeds.
        leaks: whether a generator made without privacy stands behind it.
    """

    setting: str
    augment: str | None
    epsilon: float
    auroc: float
    standard_deviation: float
    leaks: bool


_BY_SETTING: tuple[tuple[str, str | None, bool, tuple[tuple[float, float, float], ...]], ...] = (
    (
        "real images",
        "none",
        False,
        (
            (1, 0.525, 0.043),
            (6, 0.572, 0.031),
            (12, 0.596, 0.023),
            (20, 0.611, 0.018),
            (60, 0.622, 0.014),
            (math.inf, 0.778, 0.001),
        ),
    ),
    (
        "real and synthetic images",
        "mix",
        True,
        (
            (1, 0.553, 0.040),
            (6, 0.617, 0.013),
            (12, 0.624, 0.010),
            (20, 0.630, 0.003),
            (60, 0.629, 0.002),
            (math.inf, 0.774, 0.003),
        ),
    ),
    (
        "synthetic pretraining, then a private head",
        "pretrain_then_dp_head",
        True,
        (
            (1, 0.661, 0.018),
            (6, 0.677, 0.014),
            (12, 0.688, 0.012),
            (20, 0.697, 0.012),
            (60, 0.712, 0.013),
        ),
    ),
    ("synthetic images alone, all layers", "pretrain", True, ((math.inf, 0.639, 0.016),)),
)


def published(study: str) -> Sequence[PublishedPoint]:
    """The points of a study; none of another than CBIS-DDSM masses.

    >>> [point.auroc for point in published("cbis_masses") if point.epsilon == 1]
    [0.525, 0.553, 0.661]
    """
    if study != _STUDY:
        return ()
    return tuple(
        PublishedPoint(
            setting=setting,
            augment=augment,
            epsilon=float(epsilon),
            auroc=auroc,
            standard_deviation=deviation,
            leaks=leaks,
        )
        for setting, augment, leaks, points in _BY_SETTING
        for epsilon, auroc, deviation in points
    )
