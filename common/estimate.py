"""A figure with its interval, or why nothing can be said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from common.redraws import Interval, Values

FEWEST_PATIENTS = 20
"""Below, nothing is said of a group."""

FEWEST_OF_CLASS = 10
"""Patients with (or without) a label; below, nothing is said that depends on that side."""

WIDEST = 0.5
"""A wider interval leaves open all that one would want to know."""

_NO_SPREAD = 1e-12


class Unsaid(StrEnum):
    """Why a figure must not be leant on.

    The first three: too few patients to say. ``no_spread``: every redraw gave the same, as where
    no patient was wrong, and the bootstrap would call that certain. ``interval_too_wide``: more
    than `WIDEST` from end to end. ``not_measured``: there is no such figure, since a class is
    missing, no threshold could be chosen, or the scores are no probabilities. ``mostly_chance``:
    the figure lies outside its own interval, since redraws make it larger, as they do with
    calibration errors and with gaps between the worst and the best group.
    """

    too_few_patients = "too_few_patients"
    too_few_with_label = "too_few_with_label"
    too_few_without_label = "too_few_without_label"
    no_spread = "no_spread"
    interval_too_wide = "interval_too_wide"
    not_measured = "not_measured"
    mostly_chance = "mostly_chance"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One figure; derived from held-out patients.

    Attributes:
        value: the figure; ``None`` if there is none, or too few patients to show it.
        ci95: percentile interval over redraws of patients.
        unsaid: why it must not be leant on; ``None`` if it may be.
    """

    value: float | None
    ci95: Interval | None
    unsaid: Unsaid | None = None

    @classmethod
    def withheld(cls, why: Unsaid) -> Estimate:
        """Neither a figure nor an interval."""
        return cls(value=None, ci95=None, unsaid=why)

    @classmethod
    def of(cls, value: float, draws: Values, *, few: Unsaid | None = None) -> Estimate:
        """The figure ``value``, its interval from the finite ones of (R,) ``draws``.

        Args:
            value: in the sample as it is; NaN if there is none.
            draws: the same in redraws.
            few: set if there are too few patients; it is told, and nothing is held back.
        """
        if math.isnan(value):
            return cls.withheld(few or Unsaid.not_measured)
        finite = draws[np.isfinite(draws)]
        if not finite.size or np.ptp(finite) < _NO_SPREAD:
            return cls(value=value, ci95=None, unsaid=few or Unsaid.no_spread)
        low, high = (float(end) for end in np.quantile(finite, (0.025, 0.975)))
        doubt = None
        if high - low > WIDEST:
            doubt = Unsaid.interval_too_wide
        elif not low - _NO_SPREAD <= value <= high + _NO_SPREAD:
            doubt = Unsaid.mostly_chance
        return cls(value=value, ci95=(low, high), unsaid=few or doubt)

    def to_dict(self) -> dict[str, object]:
        """As result.json holds it."""
        return {
            "value": self.value,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "unsaid": None if self.unsaid is None else self.unsaid.value,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """How many patients stand behind the figures of a label; derived from them.

    Attributes:
        num_images: of which the label is known.
        num_patients: of these images.
        num_with: patients with an image with the label.
        num_without: patients with an image without it.
    """

    num_images: int
    num_patients: int
    num_with: int
    num_without: int

    @classmethod
    def of(cls, answers: NDArray[np.int64], patients: NDArray[np.int64]) -> Support:
        """Of (N,) answers 0, 1 or -1 (unknown), and whose images they are of."""
        known = answers >= 0
        return cls(
            num_images=int(known.sum()),
            num_patients=np.unique(patients[known]).size,
            num_with=np.unique(patients[answers == 1]).size,
            num_without=np.unique(patients[answers == 0]).size,
        )

    def too_few(self, *, both_sides: bool) -> Unsaid | None:
        """Whether there are too few patients, and of which kind."""
        if self.num_patients < FEWEST_PATIENTS:
            return Unsaid.too_few_patients
        if not both_sides:
            return None
        return self.too_few_with() or self.too_few_without()

    def too_few_with(self) -> Unsaid | None:
        """Whether too few have the label."""
        return Unsaid.too_few_with_label if self.num_with < FEWEST_OF_CLASS else None

    def too_few_without(self) -> Unsaid | None:
        """Whether too few are without it."""
        return Unsaid.too_few_without_label if self.num_without < FEWEST_OF_CLASS else None
