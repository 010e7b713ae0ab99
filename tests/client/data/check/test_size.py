from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from client.data.check.size import NoiseToSignal, too_small

SITE = NoiseToSignal(
    who="a site",
    num_patients=100,
    num_weights=10_000,
    sampling_rate=0.25,
    steps=16,
    noise_multiplier=1.5,
)


def test_the_ratio_is_that_of_the_mechanism() -> None:
    # Sums of clipped gradients that all point one way, against noise on every weight.
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(SITE.num_weights)
    direction[0] = 1.0
    expected = SITE.sampling_rate * SITE.num_patients
    signal, noise = torch.zeros(SITE.num_weights), torch.zeros(SITE.num_weights)
    for _ in range(SITE.steps):
        signal += direction * expected / expected
        drawn = torch.randn(SITE.num_weights, generator=generator)
        noise += SITE.noise_multiplier * drawn / expected
    assert SITE.ratio == pytest.approx(float(noise.norm() / signal.norm()), rel=0.03)


def test_sites_that_average_bring_noise_of_their_own() -> None:
    sites = replace(SITE, num_sites=4, num_patients=4 * SITE.num_patients)
    assert sites.ratio == pytest.approx(SITE.ratio / 2)


def test_the_patients_that_are_needed_bring_the_ratio_to_one() -> None:
    assert SITE.ratio > 1
    enough = replace(SITE, num_patients=SITE.patients_needed)
    assert enough.ratio <= 1
    assert replace(enough, num_patients=enough.num_patients - 1).ratio > 1


@pytest.mark.parametrize(
    ("ratio", "words", "warned"),
    [(0.9, "not ruled out", False), (1.1, "noisy", True), (5.1, "near chance", True)],
)
def test_the_verdict(ratio: float, words: str, warned: bool) -> None:
    size = replace(SITE, noise_multiplier=SITE.noise_multiplier * ratio / SITE.ratio)
    assert math.isclose(size.ratio, ratio)
    assert words in size.verdict
    assert bool(too_small(size)) is warned
    if warned:
        assert f"{ratio:.3g} times as long" in too_small(size)[0].text
