from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from common.secure_aggregation.discrete_gaussian import discrete_gaussian
from common.secure_aggregation.randomness import RandomWords


def _p_value(drawn: np.ndarray, std: float) -> float:
    """Chi-squared test of the whole distribution; entries rarer than 1 in 10,000 together."""
    reach = int(12 * std)
    values = np.arange(-reach, reach + 1)
    chances = np.exp(-(values**2) / (2.0 * std**2))
    chances /= chances.sum()
    common = chances * len(drawn) > 20
    counts = np.bincount(drawn + reach, minlength=len(values))
    seen = np.append(counts[common], counts[~common].sum())
    expected = np.append(chances[common], chances[~common].sum()) * len(drawn)
    return float(stats.chisquare(seen, expected).pvalue)


@pytest.mark.parametrize("std", [16, 17, 40])
def test_the_whole_distribution_is_right_and_no_other(std: int) -> None:
    drawn = discrete_gaussian(std, 200_000, RandomWords(seed=std))
    assert 1e-4 < _p_value(drawn, std) < 1 - 1e-4
    assert _p_value(drawn, std * 1.03) < 1e-6
    assert _p_value(drawn, std * 0.97) < 1e-6


@pytest.mark.parametrize("std", [4096, 1_406_814, 1 << 24])
def test_large_deviations_look_gaussian(std: int) -> None:
    drawn = discrete_gaussian(std, 100_000, RandomWords(seed=1)) / std
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert stats.kstest(drawn * 1.03, "norm").pvalue < 1e-4
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * len(drawn))


def test_two_draws_have_nothing_in_common() -> None:
    words = RandomWords()
    first, second = (discrete_gaussian(1000, 50_000, words) for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(50_000)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / np.sqrt(50_000)
    other = discrete_gaussian(1000, 50_000, RandomWords())
    assert (first != other).any()


def test_a_seed_repeats_and_another_does_not() -> None:
    draws = [discrete_gaussian(100, 1000, RandomWords(seed=seed)) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


@pytest.mark.parametrize("std", [15, 0, -16, (1 << 24) + 1])
def test_deviations_out_of_bounds_are_refused(std: int) -> None:
    with pytest.raises(ValueError, match="std"):
        discrete_gaussian(std, 1, RandomWords())


def test_uniform_numbers_have_no_bias() -> None:
    words = RandomWords(seed=3)
    for bound in (1, 3, 1000, 3 << 60):
        drawn = words.below(bound, 60_000)
        assert int(drawn.max()) < bound
        # three values of the largest bound, too: a plain remainder would favour the first third
        parts = (drawn // np.uint64(max(1, bound // 3))).astype(np.int64).clip(max=2)
        if bound > 2:
            assert (
                stats.chisquare(
                    np.bincount(parts[:60_000], minlength=3)[:3],
                    [60_000 * n / bound for n in _thirds(bound)],
                ).pvalue
                > 1e-4
            )
    with pytest.raises(ValueError, match="bound"):
        words.below(0, 1)


def _thirds(bound: int) -> tuple[int, int, int]:
    third = bound // 3
    return third, third, bound - 2 * third
