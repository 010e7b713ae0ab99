"""Patients and synthetic images in one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """How many synthetic images join a step (public: it depends on no patient who was drawn).

    Each counts as much as a patient: its gradient is clipped like one's, and it adds one to what
    the sum is divided by.

    Attributes:
        pool: the synthetic images, if any join.
        per_step: so many join each step, drawn with replacement; or, if ``None``,
        rate: each joins with this probability, as patients do.
        patients: expected number of patients in a step.
    """

    pool: Cohort | None
    per_step: int | None
    rate: float
    patients: float

    @classmethod
    def of(cls, recipe: Recipe, cohort: Cohort, pool: Cohort | None) -> Mixture:
        """What ``recipe`` asks for.

        Raises:
            ValueError: if it asks for synthetic images, and there is no pool.
        """
        patients = recipe.sampling_rate * cohort.num_patients
        if not recipe.mixes:
            return cls(pool=None, per_step=0, rate=0.0, patients=patients)
        if pool is None:
            raise ValueError("the recipe mixes synthetic images in, and there are none")
        counted = recipe.synthetic_as_patients
        return cls(
            pool=pool,
            per_step=None if counted else round(recipe.synthetic_ratio * patients),
            rate=recipe.sampling_rate,
            patients=patients,
        )

    @property
    def expected(self) -> float:
        """Expected number of patients and synthetic images in a step."""
        if self.per_step is not None:
            return self.patients + self.per_step
        return self.patients + self.rate * self._size

    def draw(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Rows of the synthetic images of one step, each alone."""
        if self.per_step is None:
            rows = np.flatnonzero(rng.random(self._size) < self.rate)
        else:
            rows = rng.integers(self._size, size=self.per_step)
        return list(rows[:, None])

    @property
    def _size(self) -> int:
        return 0 if self.pool is None else self.pool.num_patients
