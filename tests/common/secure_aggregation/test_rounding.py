from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy.discrete import max_norm_squared
from common.secure_aggregation.rounding import into_ring, out_of_ring, rounded


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 400),
    clip=st.sampled_from([1, 2, 64, 1 << 12, 1 << 20]),
    norm=st.floats(0, 50),
    flat=st.booleans(),
)
def test_no_result_passes_the_norm_whatever_the_gradient(
    seed: int, size: int, clip: int, norm: float, flat: bool
) -> None:
    rng = np.random.default_rng(seed)
    direction = np.ones(size) if flat else rng.normal(size=size)
    gradient = direction / np.linalg.norm(direction) * norm
    found = rounded(gradient, clip=clip, rng=rng)
    assert sum(int(value) ** 2 for value in found) <= max_norm_squared(clip, size)
    if norm <= 1:
        assert np.abs(found - gradient * clip).max() <= 1


def test_rounding_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=200)
    gradient /= np.linalg.norm(gradient)
    draws = np.mean([rounded(gradient, clip=256, rng=rng) for _ in range(4000)], axis=0)
    error = (draws - 256 * gradient) / np.sqrt(0.25 / 4000)
    assert np.abs(error).max() < 5
    assert abs(error.mean()) < 4 / np.sqrt(len(error))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad: float) -> None:
    gradient = np.array([0.5, bad, 0.1])
    assert not rounded(gradient, clip=64, rng=np.random.default_rng(0)).any()


@settings(deadline=None)
@given(values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_the_ring_gives_back_what_fits_into_it(values: list[int]) -> None:
    whole = np.array(values, dtype=np.int64)
    for bits in (32, 64):
        assert (out_of_ring(into_ring(whole, bits)) == whole).all()
