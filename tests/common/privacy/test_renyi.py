from __future__ import annotations

import warnings

import numpy as np
import pytest
from dp_accounting import dp_event, rdp

from common.privacy import renyi
from common.privacy.events import PoissonGaussianSteps, patient_level

INTEGER = np.equal(np.mod(renyi.ORDERS, 1.0), 0.0)


def step(rate: float, noise: float) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(sampling_rate=rate, noise_multiplier=noise, steps=1)


@pytest.mark.parametrize(("rate", "noise"), [(0.032, 1.0), (1 / 9, 0.96), (0.5, 4.0), (1e-4, 0.8)])
def test_integer_orders_are_those_of_dp_accounting(rate: float, noise: float) -> None:
    oracle = rdp.RdpAccountant(list(renyi.ORDERS[INTEGER]))
    oracle.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)))
    assert renyi.of_step(step(rate, noise))[INTEGER] == pytest.approx(
        oracle.rdp, rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize(("rate", "noise"), [(0.032, 1.0), (1 / 9, 0.96), (0.5, 4.0)])
def test_fractional_orders_are_those_of_opacus(rate: float, noise: float) -> None:
    orders = renyi.ORDERS[~INTEGER]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.analysis.rdp import compute_rdp

        oracle = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders))
    found = renyi.of_step(step(rate, noise))[~INTEGER]
    assert found == pytest.approx(np.asarray(oracle), rel=1e-6, abs=1e-11)


@pytest.mark.parametrize(("rate", "noise"), [(1e-9, 50.0), (1e-7, 1.0), (0.1, 1e6), (0.999, 1.0)])
def test_never_negative_nor_undefined(rate: float, noise: float) -> None:
    found = renyi.of_step(step(rate, noise))
    assert np.all(found > 0)
    assert not np.any(np.isnan(found))


def test_orders_grow_and_a_group_of_one_is_the_single_step() -> None:
    single = renyi.of_step(step(0.05, 1.3))
    assert np.all(np.diff(single) > -1e-12)
    group = renyi.of_step(patient_level(step(0.05, 1.3), 1))  # pyright: ignore[reportArgumentType]
    low = renyi.ORDERS <= 60
    assert group[low] == pytest.approx(single[low], rel=1e-6, abs=1e-11)
    two = renyi.of_step(patient_level(step(0.05, 1.3), 2))  # pyright: ignore[reportArgumentType]
    assert np.all(two[low] > single[low])
