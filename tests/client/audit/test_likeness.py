"""Similarity of images, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.audit.likeness import psnr, ssim


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((24, 32))


def test_equal_images() -> None:
    assert ssim(picture(0), picture(0)) == pytest.approx(1.0)
    assert psnr(picture(0), picture(0)) == math.inf


@given(st.floats(0, 1), st.floats(0, 1))
def test_flat_images_differ_in_brightness_alone(one: float, other: float) -> None:
    expected = (2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4)
    assert ssim(np.full((9, 9), one), np.full((9, 9), other)) == pytest.approx(expected)


def test_contrast_and_structure_count() -> None:
    """Far from the border and with a window's own mean, s = 2 a / (1 + a^2) of one scaled by a."""
    board = np.indices((64, 64)).sum(0) % 2 - 0.5
    half = ssim(0.5 + 0.4 * board, 0.5 + 0.2 * board)
    variance = 0.16 * 0.25
    expected = (variance + 9e-4) / (variance * 1.25 + 9e-4)
    assert half == pytest.approx(expected, rel=1e-3)
    assert ssim(0.5 + 0.4 * board, 0.5 - 0.4 * board) < -0.9


def test_noise_is_unlike_noise() -> None:
    assert abs(ssim(picture(0), picture(1))) < 0.2


def test_decibels_of_a_known_error() -> None:
    assert psnr(picture(0), picture(0) + 0.01) == pytest.approx(40.0)


def test_images_of_two_shapes_are_refused() -> None:
    for other in (np.zeros((3, 4)), np.zeros(12)):
        with pytest.raises(ValueError, match="must be"):
            ssim(np.zeros((4, 3)), other)
