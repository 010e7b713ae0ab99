"""Tapes: both kinds say the same, and none ever says less than the truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.dp.scratch import Scratch
from client.dp.tapes import KEEP, GhostTape, KeptTape, Tape, product_tape

SOME = settings(max_examples=40, deadline=None)
# on both sides of the blocks that the Gram matrices are made of
POSITIONS = st.one_of(st.integers(1, 5), st.sampled_from([15, 16, 17, 32, 33, 50]))
SHAPES = st.tuples(st.integers(1, 4), POSITIONS, st.integers(1, 40), st.integers(1, 40))


def draw_factors(patients: int, positions: int, d: int, p: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(patients, positions, size, generator=generator) for size in (d, p)]


def truth(a: Tensor, g: Tensor) -> Tensor:
    return torch.bmm(g.double().transpose(1, 2), a.double())


@SOME
@given(SHAPES, st.integers(0, 9))
def test_kept_and_ghost_tapes_agree(sizes: tuple[int, int, int, int], seed: int) -> None:
    a, g = draw_factors(*sizes, seed)
    gradients = truth(a, g)
    shape = gradients.shape[1:]
    factors = torch.rand(sizes[0])
    for tape in (GhostTape(a, g, shape), product_tape(a, g, shape, Scratch())):
        read = tape.squared_norms.sqrt()
        for alone in torch.eye(sizes[0]):
            released = tape.weighted_sum(alone).double().norm()
            assert float(released) <= float(read @ alone) * (1 + 1e-5)
        norms = gradients.flatten(1).norm(dim=1)
        sizes_of_terms = (a.norm(dim=2) * g.norm(dim=2)).sum(1)
        slack = 1e-4 * norms + 2e-3 * sizes_of_terms  # gradients that cancel leave rounding
        assert bool(((read - norms).abs() <= slack).all())
        total = torch.tensordot(factors.double(), gradients, dims=1)
        assert torch.allclose(tape.weighted_sum(factors).double(), total, rtol=1e-4, atol=1e-3)


@SOME
@given(SHAPES)
def test_the_rule_keeps_what_is_small_in_memory(sizes: tuple[int, int, int, int]) -> None:
    a, g = draw_factors(*sizes)
    _, positions, d, p = sizes
    tape = product_tape(a, g, torch.Size((p, d)))
    assert isinstance(tape, KeptTape if p * d <= KEEP * positions * (p + d) else GhostTape)
    assert isinstance(product_tape(a, g, torch.Size((p, d)), Scratch()), KeptTape)
    numbers = p * d if isinstance(tape, KeptTape) else positions * (p + d)
    assert tape.num_bytes == 4 * sizes[0] * numbers
    assert tape.num_bytes <= 4 * sizes[0] * positions * (p + d) * KEEP


def _ghost(a: Tensor, g: Tensor) -> Tape:
    return GhostTape(a, g, torch.Size((g.shape[2], a.shape[2])))


def _kept(a: Tensor, g: Tensor) -> Tape:
    return KeptTape(torch.bmm(g.transpose(1, 2), a))


@pytest.mark.parametrize("build", [_ghost, _kept])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_erased_patients_add_nothing_and_others_stay(
    build: Callable[[Tensor, Tensor], Tape], poison: float
) -> None:
    a, g = draw_factors(3, 4, 5, 6)
    a[1, 2, 3], g[1, 0, 0] = poison, poison
    tape = build(a, g)
    bad = ~torch.isfinite(tape.squared_norms)
    assert bad.tolist() == [False, True, False]
    tape.erase(bad)
    total = tape.weighted_sum(torch.tensor([1.0, 7.0, 2.0]))
    clean = truth(a, g)
    assert torch.allclose(total.double(), clean[0] + 2 * clean[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exponent", [-3, 0, 3])
@pytest.mark.parametrize("closeness", [1e-2, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("positions", [2, 8, 34])
def test_positions_that_cancel_hide_nothing(
    positions: int, closeness: float, exponent: int
) -> None:
    """What is left of a norm may be rounding alone; then it must not read as zero."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        signs = (torch.arange(positions) % 2 * 2.0 - 1).view(1, -1, 1)
        base = torch.randn(1, 1, 64, generator=generator)
        a = base + closeness * torch.randn(1, positions, 64, generator=generator)
        a = a * 10**exponent
        g = signs * torch.randn(1, 1, 48, generator=generator)
        tape = GhostTape(a, g, torch.Size((48, 64)))
        true = truth(a, g).flatten(1).norm(dim=1)
        summed = tape.weighted_sum(torch.ones(1)).norm()
        assert float(tape.squared_norms.sqrt()) >= float(true) * (1 - 1e-4)
        assert float(tape.squared_norms.sqrt()) >= float(summed) * (1 - 1e-4)


def test_the_margin_for_rounding_stays_below_a_ten_thousandth() -> None:
    """The docstring's figure: gradients of 400 positions that add up are not clipped too hard."""
    a, g = torch.ones(1, 400, 64), torch.ones(1, 400, 64)
    ratio = float(GhostTape(a, g, torch.Size((64, 64))).squared_norms.sqrt()) / (400 * 64)
    assert 1 <= ratio < 1 + 1e-4


def test_a_single_number_has_a_tape() -> None:
    tape = KeptTape(torch.tensor([3.0, -4.0]))
    assert tape.squared_norms.tolist() == [9.0, 16.0]
    assert float(tape.weighted_sum(torch.tensor([1.0, 0.5]))) == 1.0
    assert tape.weighted_sum(torch.ones(2)).shape == ()
