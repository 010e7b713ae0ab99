"""Codes of images, against scipy and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from common.generators.cosine import CosineCode


def some_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, 1, size, size), generator=generator) * 2 - 1


@pytest.mark.parametrize(("detail", "texture"), [(4, 0), (4, 2), (8, 3), (31, 1), (32, 0)])
def test_the_size_is_that_of_the_codes(detail: int, texture: int) -> None:
    code = CosineCode(image_size=32, detail=detail, texture=texture)
    assert code.encode(some_images(3, 32)).shape == (3, code.size)


def test_coarse_numbers_are_weighted_cosine_coefficients() -> None:
    code = CosineCode(image_size=32, detail=3, texture=0)
    images = some_images(2, 32)
    spectrum = dctn(images[:, 0].numpy(), axes=(1, 2), norm="ortho")
    places = [(u, v) for u in range(32) for v in range(32) if np.hypot(u, v) < 3]
    wanted = [[image[place] * (1 + np.hypot(*place)) / 8 for place in places] for image in spectrum]
    assert np.allclose(code.encode(images).numpy(), wanted, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), detail=st.integers(2, 12), size=st.sampled_from([32, 64]))
def test_coarse_content_comes_back_exactly(seed: int, detail: int, size: int) -> None:
    code = CosineCode(image_size=size, detail=detail, texture=0)
    codes = code.encode(some_images(2, size, seed))
    again = code.encode(code.decode(codes, torch.Generator()))
    assert torch.allclose(again, codes, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_texture_comes_back_where_it_was_and_as_strong(size: int) -> None:
    """Left halves are smooth and right halves rough; strengths differ by images."""
    code = CosineCode(image_size=size, detail=4, texture=4)
    roughness = torch.tensor([0.3, 0.9])[:, None, None, None]
    images = some_images(2, size) * roughness
    images[..., : size // 2] *= 0.4
    decoded = code.decode(code.encode(images), torch.Generator().manual_seed(1))
    for side in (slice(0, size // 4), slice(3 * size // 4, size)):
        wanted, found = (x[..., side].std(dim=(1, 2, 3)) for x in (images, decoded))
        assert torch.allclose(found.log(), wanted.log(), atol=0.4)


def test_texture_is_drawn_anew_and_repeats_by_seed() -> None:
    code = CosineCode(image_size=32, detail=4, texture=2)
    codes = code.encode(some_images(1, 32))
    first, same, other = (
        code.decode(codes, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, other, atol=0.01)


@pytest.mark.parametrize(
    ("size", "detail", "texture"), [(32, 1, 0), (32, 33, 0), (32, 4, 9), (36, 4, 1)]
)
def test_what_cannot_be_coded_is_refused(size: int, detail: int, texture: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        CosineCode(image_size=size, detail=detail, texture=texture)
