"""Noise: of the claimed scale, normal, independent, and never the same twice.

All tests of scale are two-sided at five standard errors, and each is shown to tell a tenth more
and a tenth less from what is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from client.dp.gradients import PatientOptimizer
from client.dp.noise import SystemNoise

NUM = 60_000


def scale_fits(noise: Tensor, std: float) -> bool:
    ratio = float(noise.double().square().mean()) / std**2
    return abs(ratio - 1) < 5 * math.sqrt(2 / len(noise))


def looks_normal(standard: Tensor) -> bool:
    """Mean, skewness, kurtosis, tails and the distance of Kolmogorov and Smirnov."""
    x = standard.double()
    count = len(x)
    ordered = x.sort().values
    normal = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    distance = float((normal - torch.arange(1, count + 1) / count).abs().max())
    beyond_3 = float((x.abs() > 3).double().mean())
    share = math.erfc(3 / math.sqrt(2))
    return (
        abs(float(x.mean())) < 5 / math.sqrt(count)
        and abs(float(x.pow(3).mean())) < 5 * math.sqrt(15 / count)
        and abs(float(x.pow(4).mean()) - 3) < 5 * math.sqrt(96 / count)
        and abs(beyond_3 - share) < 5 * math.sqrt(share / count)
        and distance < 2.2 / math.sqrt(count)
    )


def correlation(first: Tensor, second: Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([first, second]).double())[0, 1]))


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 99, bias=False))


def optimizer_noise(
    system: bool, *, sigma: float, clip: float, seed: int = 3, steps: int = 1
) -> list[Tensor]:
    """(d,) what each step adds to a sum of zeros."""
    model = _net()
    parameters = list(model.parameters())
    optimizer = PatientOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=1,
        generator=None if system else torch.Generator().manual_seed(seed),
    )
    if system:
        optimizer.system_noise = SystemNoise()
    found: list[Tensor] = []
    for _ in range(steps):
        before = torch.cat([p.detach().flatten() for p in parameters])
        optimizer.begin()
        optimizer.release()
        after = torch.cat([p.detach().flatten() for p in parameters])
        found.append(before - after)
        for parameter, value in zip(
            parameters, before.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.data.copy_(value.view_as(parameter))
    return found


BOTH = pytest.mark.parametrize("system", [False, True], ids=["opacus", "system"])


@BOTH
@pytest.mark.parametrize(("sigma", "clip"), [(1.0, 1.0), (0.7, 0.1), (20.0, 3.0)])
def test_noise_has_the_claimed_scale(system: bool, sigma: float, clip: float) -> None:
    (noise,) = optimizer_noise(system, sigma=sigma, clip=clip)
    std = sigma * clip
    assert scale_fits(noise, std)
    assert not scale_fits(noise, 1.1 * std)
    assert not scale_fits(noise, 0.9 * std)


@BOTH
def test_every_weight_gets_the_claimed_scale(system: bool) -> None:
    (noise,) = optimizer_noise(system, sigma=2.0, clip=0.5)
    for part in noise.split([p.numel() for p in _net().parameters()]):
        assert scale_fits(part, 1.0)


@BOTH
def test_noise_is_normal(system: bool) -> None:
    (noise,) = optimizer_noise(system, sigma=2.0, clip=0.5)
    assert looks_normal(noise)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda n: math.sqrt(3) * (2 * torch.rand(n) - 1),
        lambda n: torch.distributions.Laplace(0.0, math.sqrt(0.5)).sample((n,)),
        lambda n: torch.randn(n) + 0.03,
        lambda n: torch.randn(n).clamp(-2.9, 2.9),
        lambda n: torch.randn(n).sign() * torch.randn(n).abs().pow(1.05),
    ],
    ids=["uniform", "laplace", "shifted", "cut", "heavy"],
)
def test_the_test_of_normality_tells_others_apart(wrong: Callable[[int], Tensor]) -> None:
    torch.manual_seed(0)
    assert looks_normal(torch.randn(NUM))
    assert not looks_normal(wrong(NUM))


@BOTH
def test_coordinates_steps_and_optimizers_are_independent(system: bool) -> None:
    first, second = optimizer_noise(system, sigma=1.0, clip=1.0, steps=2)
    (third,) = optimizer_noise(system, sigma=1.0, clip=1.0, seed=4)
    bound = 4 / math.sqrt(len(first))
    assert correlation(first, second) < bound
    assert correlation(first, third) < bound
    assert correlation(first.square(), second.square()) < bound
    assert correlation(first.square(), third.square()) < bound
    half = len(first) // 2
    # 20,000 and 40,000: rows of a weight; half: the two halves of Box and Muller's pairs
    for lag in (1, 2, 3, 4, 200, 20_000, 40_000, half):
        assert correlation(first[:-lag], first[lag:]) < 4 / math.sqrt(len(first) - lag), lag
        together = correlation(first[:-lag].square(), first[lag:].square())
        assert together < 4.5 / math.sqrt(len(first) - lag), lag


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 3, 4)])
def test_system_noise_keeps_shape_type_and_values(shape: tuple[int, ...]) -> None:
    values = torch.full(shape, 5.0)
    noisy = SystemNoise().added_to(values, 0.0)
    assert torch.equal(noisy, values)
    assert noisy is not values
    moved = SystemNoise().added_to(values, 1e-3)
    assert (moved.shape, moved.dtype) == (values.shape, values.dtype)
    assert torch.allclose(moved, values, atol=0.01)
    assert bool((moved != values).all())


def test_system_noise_ignores_torchs_seed_and_leaves_its_state() -> None:
    def draw() -> Tensor:
        torch.manual_seed(0)
        state = torch.get_rng_state()
        noise = SystemNoise().added_to(torch.zeros(100), 1.0)
        assert torch.equal(torch.get_rng_state(), state)
        return noise

    assert not bool((draw() == draw()).any())


def test_one_system_noise_never_repeats_itself() -> None:
    source = SystemNoise()
    draws = torch.cat([source.added_to(torch.zeros(1_000), 1.0) for _ in range(20)])
    assert len(draws.unique()) > 0.999 * len(draws)
