from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.scanner import Scanner, expose, scanner_of

_PLAIN = Scanner(
    manufacturer="Plain",
    inverted=False,
    field_mm=32.0,
    gain=2000.0,
    offset=100.0,
    noise=0.0,
    blur_mm=0.0,
    window_center=1000.0,
    window_width=2000.0,
)
_PICTURE = np.random.default_rng(0).random((32, 32), dtype=np.float32)


def _expose(scanner: Scanner) -> np.ndarray:
    return expose(_PICTURE, scanner, np.random.default_rng(1))


def test_gain_and_offset() -> None:
    assert np.abs(_expose(_PLAIN) - (100 + 2000 * _PICTURE)).max() <= 0.51


def test_inverted_scanner_stores_the_complement() -> None:
    assert np.array_equal(_expose(replace(_PLAIN, inverted=True)), 4095 - _expose(_PLAIN))


def test_noise_has_the_asked_size() -> None:
    picture = np.full((256, 256), 0.49, dtype=np.float32)
    stored = expose(picture, replace(_PLAIN, noise=0.05), np.random.default_rng(2))
    # Two-sided: 65,536 draws give the deviation within 1 %.
    assert stored.std() == pytest.approx(2000 * 0.05 * 0.7, rel=0.02)


def test_blur_keeps_the_mean_and_spreads_a_point() -> None:
    picture = np.zeros((32, 32), dtype=np.float32)
    picture[16, 16] = 1
    scanner = replace(_PLAIN, blur_mm=1.5, offset=0, gain=4000)
    stored = expose(picture, scanner, np.random.default_rng(0))
    rows = np.arange(32) - 16
    weights = stored.sum(1) / stored.sum()
    assert np.sqrt((weights * rows**2).sum()) == pytest.approx(1.5, rel=0.15)


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_scanners_are_plausible_and_repeatable(hospital: int, seed: int) -> None:
    scanner = scanner_of(hospital, seed)
    assert scanner == scanner_of(hospital, seed)
    assert scanner.inverted == (hospital % 2 == 0)
    for brightness in (0.25, 0.6):  # the window may start at 0.05 and end at 0.68
        stored = expose(
            np.full((16, 16), brightness, np.float32), scanner, np.random.default_rng(0)
        )
        assert 0 < stored.min() <= stored.max() < 4095
        shown = (stored.mean() - scanner.window_center) / scanner.window_width + 0.5
        assert 0 < (1 - shown if scanner.inverted else shown) < 1
