from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.volume import Volume, resize_volume
from common.config import VolumeConfig
from common.errors import DataError

FULL_WINDOW = {"window_center": 500.0, "window_width": 1000.0}


def _random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1000, shape).astype(np.float32)


def _box(axes: np.ndarray, shape: tuple[int, int, int] = (4, 5, 6)) -> Volume:
    """A volume whose voxels hold their distance to the left, back and head in mm."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ axes
    return Volume.oriented((places @ np.array([1, 100, 10_000])).astype(np.float32), axes)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=3)))
def test_any_way_of_storing_gives_the_same_body(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    spacing = np.array([0.5, 0.75, 2.5])  # to the left, to the back, to the head
    axes = (np.diag(spacing) * np.array(signs)[:, None])[list(order)]
    volume = _box(axes)
    assert volume.spacing_mm == (2.5, 0.75, 0.5)
    for axis, step in enumerate((25_000, 75, 0.5)):
        assert np.allclose(np.diff(volume.values, axis=axis), step)


def test_an_oblique_box_is_turned_to_the_nearest_right_angle() -> None:
    angle = np.radians(20)
    tilt = np.array(
        [[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    values = _random((4, 5, 6))
    volume = Volume.oriented(values, np.diag([1.0, 2.0, 3.0]) @ tilt)
    assert volume.spacing_mm == pytest.approx((3, 2, 1))
    assert np.array_equal(volume.values, values.T)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (np.array([[1, 0, 0], [0.2, 1, 0], [0, 0, 1]]), "not at right angles"),
        (np.diag([1.0, 1.0, 0.0]), "no sensible size"),
        (np.diag([1.0, np.nan, 1.0]), "no sensible size"),
        (np.diag([1.0, 1.0, 1000.0]), "no sensible size"),
    ],
)
def test_unsound_axes_are_refused(axes: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Volume.oriented(_random((2, 3, 4)), axes)


@given(
    st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.integers(0, 9)
)
def test_resizing_keeps_the_range_and_constant_volumes(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int
) -> None:
    volume = _random(old, seed)
    resized = resize_volume(volume, new)
    assert resized.shape == new
    assert volume.min() - 1e-2 <= resized.min() <= resized.max() <= volume.max() + 1e-2
    assert np.allclose(resize_volume(np.full(old, 7, np.float32), new), 7, atol=1e-4)


def test_shrinking_by_a_whole_number_averages_blocks() -> None:
    volume = _random((4, 6, 8))
    blocks = volume.reshape(2, 2, 3, 2, 2, 4).mean((1, 3, 5))
    assert np.allclose(resize_volume(volume, (2, 3, 2)), blocks, rtol=1e-4)


def test_growing_a_ramp_gives_a_ramp() -> None:
    ramp = np.tile(np.arange(5, dtype=np.float32)[:, None, None], (1, 2, 2))
    grown = resize_volume(ramp, (15, 2, 2))[:, 0, 0]
    assert np.allclose(grown[1:-1], np.arange(1, 14) / 3 - 1 / 3, atol=1e-5)


def test_the_window_becomes_zero_to_one() -> None:
    values = np.array([-2000, -1350, -600, 150, 3000], dtype=np.float32).reshape(1, 1, 5)
    config = VolumeConfig(depth=1, window_center=-600, window_width=1500)
    volume = Volume(values=np.repeat(values, 5, axis=1), spacing_mm=(1, 1, 1))
    assert np.allclose(volume.on_grid(config, 5)[0, 0], [0, 0, 0.5, 1, 1])


def test_equal_spacing_crops_and_pads_around_the_centre() -> None:
    values = _random((6, 4, 4))
    volume = Volume(values=values, spacing_mm=(2.0, 1.0, 1.0))
    config = VolumeConfig(depth=4, slice_spacing_mm=2, pixel_spacing_mm=1, **FULL_WINDOW)
    grid = volume.on_grid(config, 8)
    assert grid.shape == (4, 8, 8)
    assert np.allclose(grid[:, 2:6, 2:6], values[1:5] / 1000, atol=1e-5)
    grid[:, 2:6, 2:6] = 0
    assert not grid.any()


def test_a_body_keeps_its_size_whatever_its_voxels() -> None:
    """The same ball, scanned finely and coarsely, has the same volume on the grid."""
    sums = []
    for spacing in ((1.0, 0.5, 0.5), (2.5, 1.0, 1.0), (0.8, 0.8, 0.8)):
        shape = [round(40 / side) for side in spacing]
        places = [(np.arange(n) + 0.5 - n / 2) * s for n, s in zip(shape, spacing, strict=True)]
        radius = np.sqrt(sum(place**2 for place in np.meshgrid(*places, indexing="ij")))
        ball = np.where(radius < 8, 1000, 0).astype(np.float32)
        config = VolumeConfig(depth=16, slice_spacing_mm=2, pixel_spacing_mm=1, **FULL_WINDOW)
        grid = Volume(values=ball, spacing_mm=spacing).on_grid(config, 32)
        sums.append(float(grid.sum()) * 2)
    assert sums == pytest.approx([4 / 3 * np.pi * 8**3] * 3, rel=0.05)


@pytest.mark.parametrize("shape", [(4, 5), (0, 5, 6), (1 << 10, 1 << 10, 1 << 10)])
def test_sizes_are_bounded(shape: tuple[int, ...]) -> None:
    values = np.broadcast_to(np.float32(0), shape)
    with pytest.raises(DataError, match="allowed are 3 axes"):
        Volume.oriented(values, np.eye(3))
