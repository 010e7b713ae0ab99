from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from client.synthesis.quality.radiomics import LEVELS, NAMES, co_occurrence, radiomics
from common.errors import UsageError

_RNG = np.random.default_rng(0)
_IMAGES = _RNG.random((70, 1, 16, 16)).astype(np.float32) ** 2


def _column(name: str, images: np.ndarray = _IMAGES) -> np.ndarray:
    return radiomics(images)[:, NAMES.index(name)]


def test_moments_are_those_of_scipy() -> None:
    pixels = _IMAGES.reshape(len(_IMAGES), -1).astype(np.float64)
    assert np.allclose(_column("first_order_skewness"), scipy.stats.skew(pixels, axis=1))
    kurtosis = scipy.stats.kurtosis(pixels, axis=1, fisher=False)
    assert np.allclose(_column("first_order_kurtosis"), kurtosis)
    assert np.allclose(_column("first_order_std"), pixels.std(axis=1))


def test_pairs_are_counted_as_a_loop_counts_them() -> None:
    levels = _RNG.integers(LEVELS, size=(1, 9, 9))
    expected = np.zeros((LEVELS, LEVELS))
    for row in range(9):
        for column in range(9):
            for down, right in ((0, 2), (2, 0), (2, 2), (2, -2)):
                if row + down < 9 and 0 <= column + right < 9:
                    here, there = levels[0, row, column], levels[0, row + down, column + right]
                    expected[here, there] += 1
                    expected[there, here] += 1
    assert np.allclose(co_occurrence(levels, 2)[0], expected / expected.sum())


def test_textures_of_stripes() -> None:
    stripes = np.zeros((1, 1, 16, 16), dtype=np.float32)
    stripes[..., ::2] = 1.0
    # Neighbours along a column are equal, in the three other directions they differ by 31 levels.
    along, across = 15 * 16, 16 * 15 + 2 * 15 * 15
    share = across / (along + across)
    assert _column("glcm1_contrast", stripes)[0] == pytest.approx(31**2 * share)
    assert _column("glcm4_contrast", stripes)[0] == 0
    assert _column("glcm4_correlation", stripes)[0] == pytest.approx(1)
    assert _column("spectrum_0", stripes)[0] == pytest.approx(0)


def test_flips_change_nothing_and_blur_does() -> None:
    assert np.allclose(radiomics(_IMAGES), radiomics(_IMAGES[..., ::-1, :]), atol=1e-9)
    blurred = (_IMAGES + np.roll(_IMAGES, 1, 2) + np.roll(_IMAGES, 1, 3)) / 3
    assert (_column("gradient_mean", blurred) < _column("gradient_mean")).all()
    assert (_column("spectrum_0", blurred) < _column("spectrum_0")).all()


def test_flat_images_have_finite_features() -> None:
    flat = radiomics(np.stack([np.zeros((1, 8, 8)), np.ones((1, 8, 8))]).astype(np.float32))
    assert flat.shape == (2, len(NAMES))
    assert np.isfinite(flat).all()


def test_chunks_do_not_show() -> None:
    one_by_one = np.concatenate([radiomics(image[None]) for image in _IMAGES])
    assert np.allclose(radiomics(_IMAGES), one_by_one, rtol=1e-9, atol=1e-9)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    radiomics(_IMAGES, what="texture", progress=lambda *args: told.append(args))
    assert told == [("texture", 64, 70), ("texture", 70, 70)]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8)),
        np.zeros((2, 1, 8, 9)),
        np.zeros((0, 1, 8, 8)),
        np.full((1, 1, 8, 8), 1.1),
        np.full((1, 1, 8, 8), np.nan),
    ],
)
def test_what_is_no_set_of_images(images: np.ndarray) -> None:
    with pytest.raises(UsageError):
        radiomics(images.astype(np.float32))
