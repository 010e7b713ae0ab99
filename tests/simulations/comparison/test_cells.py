"""Figures over seeds, and over hospitals that train alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from common.evaluation import macro_auroc
from common.figures import Figure
from common.paired import Arm
from simulations.comparison.cells import cells_of, mean_of
from simulations.comparison.measured import Measured

Make = Callable[..., Measured]


def test_a_cell_is_the_mean_of_its_seeds(make_measured: Make) -> None:
    found = [make_measured(seed=seed) for seed in (1, 2, 3)]
    (cell,) = cells_of(found, [one.trial for one in found], seed=0).values()
    aurocs = [macro_auroc(one.predictions.scored) for one in found]
    summary = cell.arm.summary()[Figure.auroc]
    assert list(summary.by_seed.values()) == pytest.approx(aurocs)
    assert summary.patients.value == pytest.approx(np.mean(aurocs))
    assert summary.standard_deviation == pytest.approx(np.std(aurocs, ddof=1))


def test_alone_is_the_mean_over_hospitals_and_each_of_them(make_measured: Make) -> None:
    found = [
        make_measured("local", seed=seed, site=site, shift=shift)
        for seed in (1, 2)
        for site, shift in (("a", 0.3), ("b", 2.0))
    ]
    (cell,) = cells_of(found, [one.trial for one in found], seed=0).values()
    aurocs = {
        site: [macro_auroc(o.predictions.scored) for o in found if o.trial.site == site]
        for site in "ab"
    }
    for site, arm in cell.sites.items():
        assert list(arm.point[:, 0]) == pytest.approx(aurocs[site])
    mean = np.mean([aurocs["a"], aurocs["b"]], axis=0)
    assert list(cell.arm.point[:, 0]) == pytest.approx(list(mean))
    assert np.allclose(cell.arm.draws, (cell.sites["a"].draws + cell.sites["b"].draws) / 2)


def test_a_seed_counts_only_with_all_of_its_hospitals(make_measured: Make) -> None:
    planned = [
        make_measured("local", seed=seed, site=site) for seed in (1, 2) for site in ("a", "b", "c")
    ]
    trials = [one.trial for one in planned]
    without_one = [one for one in planned if (one.trial.seed, one.trial.site) != (2, "b")]
    (cell,) = cells_of(without_one, trials, seed=0).values()
    assert cell.arm.seeds == (1,)
    assert list(cell.sites) == ["a", "b", "c"]
    # A hospital that has no result at all is missed as well.
    without_all = [one for one in planned if one.trial.site != "b"]
    assert cells_of(without_all, trials, seed=0) == {}
    assert cells_of([], trials, seed=0) == {}


def test_arms_of_other_redraws_have_no_mean(make_measured: Make) -> None:
    runs = {1: make_measured().predictions.scored}
    arm, other = Arm.of(runs, seed=0), Arm.of(runs, seed=1)
    with pytest.raises(ValueError, match="redraws differ"):
        mean_of([arm, other])
    assert np.array_equal(mean_of([arm, arm]).draws, arm.draws)
