"""Facts about the figures, whichever way they fall."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from common.figures import Figure
from simulations.comparison.cells import cells_of
from simulations.comparison.checks import Check, Finding, findings
from simulations.comparison.differences import differences
from simulations.comparison.measured import Measured

Make = Callable[..., Measured]


def found_by(*trials: Measured) -> dict[Check, list[Finding]]:
    cells = cells_of(trials, [one.trial for one in trials], seed=0)
    every = findings(cells, differences(cells))
    return {check: [one for one in every if one.check is check] for check in Check}


@pytest.mark.parametrize(("shift", "holds"), [(1.0, True), (3.0, False), (0.1, False)])
def test_near_centralized(shift: float, holds: bool, make_measured: Make) -> None:
    trials = (make_measured(shift=shift), make_measured("centralized", shift=1.0))
    (near,) = found_by(*trials)[Check.federated_near_centralized]
    assert near.holds is holds
    assert (abs(near.value) <= 0.02) is holds
    assert ("not within 0.02" in near.says) is not holds
    private = [make_measured(epsilon=8.0), make_measured("centralized", epsilon=8.0)]
    assert found_by(*private)[Check.federated_near_centralized] == []


@pytest.mark.parametrize(("shift", "holds"), [(0.1, True), (3.0, False)])
def test_alone_is_worse(shift: float, holds: bool, make_measured: Make) -> None:
    trials = (make_measured(shift=1.0), make_measured("local", site="a", shift=shift))
    (below,) = found_by(*trials)[Check.local_below_federated]
    assert below.holds is holds
    assert (below.value < 0) is holds
    assert below.ci95 is not None
    assert ("is worse" in below.says) is holds
    assert "which chance alone could do" not in below.says


def test_a_small_loss_is_said_to_be_small(make_measured: Make) -> None:
    trials = (make_measured(shift=1.1), make_measured("local", site="a", shift=1.0))
    (below,) = found_by(*trials)[Check.local_below_federated]
    assert below.ci95 is not None
    assert below.ci95[0] < 0 < below.ci95[1]
    assert ("which chance alone could do" in below.says) is below.holds


def test_order_by_epsilon(make_measured: Make) -> None:
    rising = [make_measured(epsilon=e, shift=s) for e, s in ((1.0, 0.2), (8.0, 1.0), (math.inf, 3))]
    (order,) = found_by(*rising)[Check.ordered_by_epsilon]
    assert order.holds
    assert order.value == 0
    assert "rises with epsilon" in order.says
    falling = [make_measured(epsilon=e, shift=s) for e, s in ((1.0, 1.0), (8.0, 0.2), (20.0, 3.0))]
    (order,) = found_by(*falling)[Check.ordered_by_epsilon]
    assert not order.holds
    cells = cells_of(falling, [one.trial for one in falling], seed=0)
    first, second, _ = (c.arm.summary()[Figure.auroc].patients.value for c in cells.values())
    assert first is not None
    assert second is not None
    assert order.value == pytest.approx(first - second)
    assert f"from 1 to 8 it falls by {order.value:.3f}" in order.says


def test_one_epsilon_has_no_order(make_measured: Make) -> None:
    assert found_by(make_measured())[Check.ordered_by_epsilon] == []
