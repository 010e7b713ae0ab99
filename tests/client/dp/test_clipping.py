"""Clipping factors: never past the bound, whatever the norms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.dp.clipping import Clipping
from common.config import ClippingKind

NORMS = st.lists(st.floats(0, 2.0**59, width=32), min_size=1, max_size=8)
BOUND = st.floats(1e-3, 1e3)


@pytest.mark.parametrize("kind", ["flat", "automatic"])
@given(norms=NORMS, bound=BOUND)
def test_no_gradient_is_longer_than_the_bound(kind: str, norms: list[float], bound: float) -> None:
    lengths = torch.tensor(norms)
    factors = Clipping(kind=kind, max_grad_norm=bound).factors(lengths)
    assert bool(torch.isfinite(factors).all())
    assert bool((factors >= 0).all())
    assert float((factors * lengths).max()) <= bound * (1 + 1e-6)


def test_flat_factors_shorten_to_the_bound_and_never_lengthen() -> None:
    norms = torch.tensor([0.0, 1e-30, 0.5, 1.0, 2.0, 1e30])
    factors = Clipping(kind="flat", max_grad_norm=1.0).factors(norms)
    assert factors[:3].tolist() == [1.0, 1.0, 1.0]
    assert (factors * norms)[3:].tolist() == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)


def test_automatic_factors_give_every_gradient_about_the_same_length() -> None:
    norms = torch.tensor([0.0, 0.01, 1.0, 100.0])
    factors = Clipping(kind="automatic", max_grad_norm=2.0).factors(norms)
    # C / (|g| + 0.01), Bu et al. 2022
    assert factors.tolist() == pytest.approx([200.0, 100.0, 2 / 1.01, 2 / 100.01])
    lengths = (factors * norms).tolist()
    assert lengths == sorted(lengths)


@given(st.integers(1, 400), BOUND)
def test_layers_keep_the_bound_together(num_layers: int, bound: float) -> None:
    one = Clipping(kind="per_layer", max_grad_norm=bound).of_one_layer(num_layers)
    assert one.kind == "flat"
    assert math.sqrt(num_layers * one.max_grad_norm**2) == pytest.approx(bound)


def test_every_kind_of_the_configuration_is_known() -> None:
    assert {kind.value for kind in ClippingKind} == {"flat", "automatic", "per_layer"}
