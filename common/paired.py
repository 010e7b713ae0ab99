"""Two ways of training compared on the same patients, over several runs of each.

Everything here reads held-out patients without a privacy mechanism. What the intervals and the
p-values mean, and how seeds and patients come together: docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.estimate import Estimate, Unsaid
from common.evaluation import nan_mean
from common.figures import Figure, Measure
from common.redraws import NUM_REDRAWS, Counts, Interval, Values, redrawn
from common.scored import Scored
from common.seeds import derive_seed

PAIRED = tuple(figure for figure in Figure if figure is not Figure.calibration_gap)
"""Figures of which more, or less, is better."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Arm:
    """One way of training, measured in redraws of the test patients; derived from them.

    Attributes:
        seeds: of its runs, in ascending order.
        point: (S, F) the figures of `PAIRED` of each run, means over labels.
        draws: (R, S, F) the same in redraws that arms of one ``seed`` share.
        few: by figure, whether the test patients are too few.
        cohort: what was redrawn, for comparison: targets and patients.
        redraws_seed: what decided the redraws.
    """

    seeds: tuple[int, ...]
    point: Values
    draws: Values
    few: Mapping[Figure, Unsaid | None]
    cohort: tuple[NDArray[np.int64], NDArray[np.int64]] = field(repr=False)
    redraws_seed: int

    @classmethod
    def of(cls, runs: Mapping[int, Scored], *, seed: int, num_redraws: int = NUM_REDRAWS) -> Arm:
        """Measure each run in the same redraws of patients.

        Args:
            runs: by the seed of the run, all of the same test images in the same order.
            seed: decides the redraws; the same for all arms that are to be compared.
            num_redraws: R.

        Raises:
            ValueError: no run, other images in one of them, or fewer than two patients.
        """
        if not runs:
            raise ValueError("runs: at least one is needed")
        seeds = tuple(sorted(runs))
        first = runs[seeds[0]]
        cohort = (first.targets, first.patients)
        for number in seeds[1:]:
            _check_same(cohort, (runs[number].targets, runs[number].patients))
        statistics = [_Mean.of(runs[number]) for number in seeds]
        whole = np.ones((1, len(first.labels)), dtype=np.int64)
        draws = redrawn(statistics, first.patients, num_redraws=num_redraws, seed=seed)
        supports = [first.support(place) for place in range(cohort[0].shape[1])]
        few = {figure: [figure.too_few(support) for support in supports] for figure in PAIRED}
        return cls(
            seeds=seeds,
            point=np.stack([one(whole)[0] for one in statistics]),
            draws=np.stack(draws, axis=1),
            few={figure: found[0] if all(found) else None for figure, found in few.items()},
            cohort=cohort,
            redraws_seed=seed,
        )

    def summary(self) -> dict[Figure, Summary]:
        """Each figure, as the mean over runs."""
        mixed = _mixed(self)
        return {
            figure: Summary(
                by_seed={
                    seed: _plain(value)
                    for seed, value in zip(self.seeds, self.point[:, place], strict=True)
                },
                standard_deviation=_spread(self.point[:, place]),
                patients=Estimate.of(
                    float(self.point[:, place].mean()),
                    self.draws[:, :, place].mean(axis=1),
                    few=self.few[figure],
                ),
                patients_and_seeds=None
                if mixed is None
                else Estimate.of(
                    float(self.point[:, place].mean()), mixed[:, place], few=self.few[figure]
                ),
            )
            for place, figure in enumerate(PAIRED)
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A figure of an arm.

    Attributes:
        by_seed: of each run.
        standard_deviation: over runs (n - 1); ``None`` with one.
        patients: their mean; the interval says how it depends on the patients drawn, for these
            very models.
        patients_and_seeds: their mean; the interval is also for the chance in training. ``None``
            with one run.
    """

    by_seed: Mapping[int, float | None]
    standard_deviation: float | None
    patients: Estimate
    patients_and_seeds: Estimate | None

    def to_dict(self) -> dict[str, object]:
        """As plain JSON."""
        both = self.patients_and_seeds
        return {
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
            "standard_deviation": self.standard_deviation,
            "patients": self.patients.to_dict(),
            "patients_and_seeds": None if both is None else both.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """How sure a difference is.

    Attributes:
        ci95: percentile interval of A - B; ``None`` if no redraw differs.
        share_not_better: share of redraws in which A is not better than B: the one-sided p-value
            of Tayebi Arasteh et al. 2024 for "A is better". 0 means below 1 / R.
        p_two_sided: twice the smaller tail, ``2 (k + 1) / (R + 1)``, at most 1.
    """

    ci95: Interval | None
    share_not_better: float
    p_two_sided: float

    def to_dict(self) -> dict[str, object]:
        """As plain JSON."""
        return {
            "ci95": None if self.ci95 is None else list(self.ci95),
            "share_not_better": self.share_not_better,
            "p_two_sided": self.p_two_sided,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Arm A minus arm B, of the means over runs.

    Attributes:
        value: ``None`` if there is no such figure.
        patients: from shared redraws of patients, the models as they are.
        patients_and_seeds: runs are redrawn too; ``None`` where an arm has one run.
        seeds_paired: whether both arms have the same seeds, which are then redrawn together.
        unsaid: why the figure must not be leant on.
    """

    value: float | None
    patients: Evidence | None
    patients_and_seeds: Evidence | None
    seeds_paired: bool
    unsaid: Unsaid | None

    def to_dict(self) -> dict[str, object]:
        """As plain JSON."""
        fixed, both = self.patients, self.patients_and_seeds
        return {
            "value": self.value,
            "patients": None if fixed is None else fixed.to_dict(),
            "patients_and_seeds": None if both is None else both.to_dict(),
            "seeds_paired": self.seeds_paired,
            "unsaid": None if self.unsaid is None else self.unsaid.value,
        }


def difference(a: Arm, b: Arm) -> dict[Figure, Difference]:
    """Each figure of A minus that of B, redraw by redraw.

    Raises:
        ValueError: the arms have other test images, or were measured in other redraws.
    """
    _check_same(a.cohort, b.cohort)
    if a.redraws_seed != b.redraws_seed or len(a.draws) != len(b.draws):
        raise ValueError("arms: measured in different redraws; use one seed and number for both")
    mixed = (_mixed(a), _mixed(b))
    found: dict[Figure, Difference] = {}
    for place, figure in enumerate(PAIRED):
        value = _plain(a.point[:, place].mean() - b.point[:, place].mean())
        fixed = a.draws[:, :, place].mean(axis=1) - b.draws[:, :, place].mean(axis=1)
        both = None
        if mixed[0] is not None and mixed[1] is not None:
            both = _evidence(figure, mixed[0][:, place] - mixed[1][:, place])
        found[figure] = Difference(
            value=value,
            patients=None if value is None else _evidence(figure, fixed),
            patients_and_seeds=None if value is None else both,
            seeds_paired=a.seeds == b.seeds,
            unsaid=Unsaid.not_measured if value is None else a.few[figure],
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Mean:
    """The figures of one run, as means over the labels that have them."""

    measures: tuple[Measure, ...]

    @classmethod
    def of(cls, scored: Scored) -> _Mean:
        return cls(measures=tuple(map(scored.measure, range(scored.targets.shape[1]))))

    def __call__(self, counts: Counts) -> Values:
        """(B, F)."""
        return nan_mean(np.stack([one(counts, PAIRED) for one in self.measures], axis=-1))


def _mixed(arm: Arm) -> Values | None:
    """(R, F) means over runs in redrawn patients, moved as redrawn runs move them.

    S runs are drawn from S with replacement. That alone gives the mean a variance too small by
    (S - 1) / S, so the drawn weights are stretched about 1 / S (Davison and Hinkley 1997, 2.4).
    Arms of the same seeds draw the same runs. What a run makes of a single patient by chance is
    in both parts, so the variance is too large, at most twice (compare Owen 2007,
    https://doi.org/10.1214/07-AOAS122). ``None`` with one run.
    """
    num_runs = len(arm.seeds)
    if num_runs < 2:
        return None
    rng = np.random.default_rng(derive_seed(arm.redraws_seed, "runs", *arm.seeds))
    drawn = rng.multinomial(num_runs, [1 / num_runs] * num_runs, size=len(arm.draws)) / num_runs
    moved = (drawn - 1 / num_runs) * np.sqrt(num_runs / (num_runs - 1))
    return arm.draws.mean(axis=1) + moved @ arm.point


def _evidence(figure: Figure, draws: Values) -> Evidence | None:
    """From (R,) differences; those that are NaN do not count."""
    finite = draws[np.isfinite(draws)]
    if not finite.size:
        return None
    better = -finite if figure.lower_is_better else finite
    not_better, not_worse = int((better <= 0).sum()), int((better >= 0).sum())
    low, high = (float(end) for end in np.quantile(finite, (0.025, 0.975)))
    two_sided = 2 * (min(not_better, not_worse) + 1) / (finite.size + 1)
    return Evidence(
        ci95=(low, high) if np.ptp(finite) > 0 else None,
        share_not_better=not_better / finite.size,
        p_two_sided=min(1.0, two_sided),
    )


def _check_same(
    one: tuple[NDArray[np.int64], NDArray[np.int64]],
    other: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> None:
    if not all(np.array_equal(*pair) for pair in zip(one, other, strict=True)):
        raise ValueError(
            "runs: their test images differ, so they cannot be compared patient by patient"
        )


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _spread(values: Values) -> float | None:
    return _plain(values.std(ddof=1)) if len(values) > 1 else None
