"""Noise: of the claimed scale, normal, independent, and never the same twice.

Each test of scale or shape is two-sided at five standard errors, and shown to tell others apart.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from common import noise as noise_module
from common.noise import Noise, Numbers

NUM = 60_000
BOTH = pytest.mark.parametrize("seed", [None, 7], ids=["system", "seed"])


def scale_fits(noise: Numbers, std: float) -> bool:
    ratio = float(np.mean(noise**2)) / std**2
    return abs(ratio - 1) < 5 * math.sqrt(2 / len(noise))


def looks_normal(x: Numbers) -> bool:
    """Mean, skewness, kurtosis, tails and the distance of Kolmogorov and Smirnov."""
    count = len(x)
    share = math.erfc(3 / math.sqrt(2))
    distance = float(stats.kstest(x, "norm").statistic)
    return (
        abs(float(x.mean())) < 5 / math.sqrt(count)
        and abs(float(np.mean(x**3))) < 5 * math.sqrt(15 / count)
        and abs(float(np.mean(x**4)) - 3) < 5 * math.sqrt(96 / count)
        and abs(float(np.mean(np.abs(x) > 3)) - share) < 5 * math.sqrt(share / count)
        and distance < 2.2 / math.sqrt(count)
    )


def correlation(first: Numbers, second: Numbers) -> float:
    return abs(float(np.corrcoef(first, second)[0, 1]))


@BOTH
@pytest.mark.parametrize("std", [1.0, 0.07, 60.0])
def test_noise_has_the_claimed_scale(seed: int | None, std: float) -> None:
    noise = Noise(seed).added_to(np.zeros(NUM, np.float32), std)
    assert noise.dtype == np.float64
    assert scale_fits(noise, std)
    assert not scale_fits(noise, 1.1 * std)
    assert not scale_fits(noise, 0.9 * std)


@BOTH
def test_noise_is_normal(seed: int | None) -> None:
    assert looks_normal(Noise(seed).normal(NUM))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rng: rng.uniform(-math.sqrt(3), math.sqrt(3), NUM),
        lambda rng: rng.laplace(0.0, math.sqrt(0.5), NUM),
        lambda rng: rng.normal(size=NUM) + 0.03,
        lambda rng: rng.normal(size=NUM).clip(-2.9, 2.9),
        lambda rng: rng.permutation(rng.normal(size=NUM // 2).repeat(2)) * 1.03,
    ],
    ids=["uniform", "laplace", "shifted", "cut", "wide"],
)
def test_the_test_of_normality_tells_others_apart(wrong: Callable[[Any], Numbers]) -> None:
    assert looks_normal(np.random.default_rng(0).normal(size=NUM))
    assert not looks_normal(wrong(np.random.default_rng(0)))


@BOTH
def test_numbers_and_draws_are_independent(seed: int | None) -> None:
    source = Noise(seed)
    first, second = source.normal(NUM), source.normal(NUM)
    third = Noise(None if seed is None else seed + 1).normal(NUM)
    for other in (second, third):
        assert correlation(first, other) < 5 / math.sqrt(NUM)
        assert correlation(first**2, other**2) < 5 / math.sqrt(NUM)
    # half: the two halves of Box and Muller's pairs; a quarter: what is added into one number
    for lag in (1, 2, 3, 4, 200, NUM // 4, NUM // 2):
        assert correlation(first[:-lag], first[lag:]) < 5 / math.sqrt(NUM - lag), lag
        together = correlation(first[:-lag] ** 2, first[lag:] ** 2)
        assert together < 5 / math.sqrt(NUM - lag), lag


@BOTH
def test_noise_is_independent_across_the_portions_it_is_drawn_in(
    seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise_module, "_AT_ONCE", 7_001)
    noise = Noise(seed).normal(NUM)
    assert scale_fits(noise, 1.0)
    assert looks_normal(noise)
    for lag in (7_001, 14_002):
        assert correlation(noise[:-lag], noise[lag:]) < 5 / math.sqrt(NUM - lag)
    assert len(np.unique(noise)) == NUM


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 3, 4)])
def test_noise_keeps_shape_and_values(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 5.0, np.float32)
    np.testing.assert_array_equal(Noise().added_to(values, 0.0), values)
    moved = Noise().added_to(values, 1e-3)
    assert moved.shape == shape
    np.testing.assert_allclose(moved, values, atol=0.01)
    assert np.all(moved != values)


def test_the_systems_noise_never_repeats_itself() -> None:
    """Not within a source, not between two, not between processes, whatever numpy was seeded."""
    source = Noise()
    np.random.seed(0)
    draws = [source.normal(1_000) for _ in range(10)]
    np.random.seed(0)
    draws += [Noise().normal(1_000) for _ in range(10)]
    script = "from common.noise import Noise; print(Noise().normal(3).tolist())"
    told = [subprocess.check_output([sys.executable, "-c", script]) for _ in range(2)]
    assert told[0] != told[1]
    draws += [np.array(json.loads(text)) for text in told]
    every = np.concatenate(draws)
    assert len(np.unique(every)) == len(every)


def test_a_seeds_noise_is_the_same_again_and_no_other_seeds() -> None:
    def draw(seed: int) -> Numbers:
        source = Noise(seed)
        return np.concatenate([source.normal(500), source.normal(500)])

    np.testing.assert_array_equal(draw(3), draw(3))
    every = np.concatenate([draw(seed) for seed in (3, 4, 34, 2**62)])
    assert len(np.unique(every)) == len(every)


def test_uniform_numbers_lie_in_the_half_open_interval() -> None:
    uniform = Noise()._uniform(NUM)
    assert float(uniform.min()) > 0
    assert float(uniform.max()) <= 1
    assert abs(float(uniform.mean()) - 0.5) < 5 / math.sqrt(12 * NUM)
    assert abs(float(uniform.var()) * 12 - 1) < 5 * math.sqrt(0.8 / NUM)


def test_the_stream_is_chacha20(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key stream of RFC 8439, section 2.3.2's cipher, for the key and nonce zero (A.1, 1)."""
    monkeypatch.setattr(noise_module, "_system_key", lambda: bytes(32))
    first = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28")
    words = [int.from_bytes(first[start : start + 8], "little") for start in (0, 8)]
    expected = [((word >> 11) + 1) * 2.0**-53 for word in words]
    assert Noise()._uniform(2).tolist() == expected
