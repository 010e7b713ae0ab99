from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.augmentation import Augmentation
from common.config import AugmentationConfig
from common.errors import UsageError


def _all(**changes: float) -> AugmentationConfig:
    values = {
        "flip_horizontal": True,
        "flip_vertical": True,
        "flip_slices": True,
        "rotation_degrees": 20.0,
        "shift": 0.1,
        "scale": 0.1,
        "brightness": 0.2,
        "contrast": 0.3,
    }
    return AugmentationConfig(**(values | changes))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=_generator(99))


def _views(config: AugmentationConfig, images: torch.Tensor, k: int = 1) -> torch.Tensor:
    return Augmentation(config=config).views(images, k, _generator())


def test_without_settings_views_are_copies_and_draw_nothing() -> None:
    images, generator = _images(3, 1, 8, 8), _generator(4)
    augmentation = Augmentation(config=AugmentationConfig())
    assert not augmentation.active
    assert torch.equal(augmentation.views(images, 2, generator), images.repeat_interleave(2, 0))
    assert torch.equal(generator.get_state(), _generator(4).get_state())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(1, 4), st.sampled_from([(16, 16), (3, 8, 8)]))
def test_views_keep_shape_and_range_and_leave_their_images(
    n: int, k: int, shape: tuple[int, ...]
) -> None:
    images = _images(n, 1, *shape)
    before = images.clone()
    views = _views(_all(), images, k)
    assert views.shape == (n * k, 1, *shape)
    assert views.dtype == torch.float32
    assert torch.equal(images, before)
    assert bool(((views >= 0) & (views <= 1)).all())


def test_the_same_generator_gives_the_same_views_and_another_others() -> None:
    images, augmentation = _images(4, 1, 16, 16), Augmentation(config=_all())
    first = augmentation.views(images, 2, _generator(1))
    assert torch.equal(first, augmentation.views(images, 2, _generator(1)))
    assert not torch.equal(first, augmentation.views(images, 2, _generator(2)))


@pytest.mark.parametrize("shape", [(16, 16), (5, 16, 16)])
def test_a_view_depends_on_no_other_image(shape: tuple[int, ...]) -> None:
    images = _images(3, 1, *shape)
    changed = images.clone()
    changed[1] = 0.25
    first, second = _views(_all(), images, 2), _views(_all(), changed, 2)
    assert torch.equal(first[:2], second[:2])
    assert torch.equal(first[4:], second[4:])
    assert not torch.equal(first[2:4], second[2:4])


@pytest.mark.parametrize(
    ("name", "axis"), [("flip_horizontal", -1), ("flip_vertical", -2), ("flip_slices", -3)]
)
def test_flips_turn_half_of_the_images_around_exactly(name: str, axis: int) -> None:
    images = _images(400, 1, 2, 4, 4)
    views = _views(AugmentationConfig(**{name: True}), images)
    kept = (views == images).flatten(1).all(1)
    turned = (views == images.flip(axis)).flatten(1).all(1)
    assert bool((kept ^ turned).all())
    assert 150 < int(turned.sum()) < 250  # five standard deviations


def test_flips_of_slices_leave_a_single_image() -> None:
    images = _images(5, 1, 8, 8)
    assert torch.equal(_views(AugmentationConfig(flip_slices=True), images), images)


def _disk(x: float, y: float, size: int = 64) -> torch.Tensor:
    """A soft disk at (x, y), from -1 to 1 of the half side."""
    place = (torch.arange(size) + 0.5) / size * 2 - 1
    squared = (place[None, :] - x) ** 2 + (place[:, None] - y) ** 2
    return torch.exp(-squared / 0.02)[None, None]


def _centre(image: torch.Tensor) -> tuple[float, float]:
    size = image.shape[-1]
    place = (torch.arange(size) + 0.5) / size * 2 - 1
    weights = image.reshape(-1, size, size).sum(0)
    total = float(weights.sum())
    return float((weights.sum(0) * place).sum()) / total, float(
        (weights.sum(1) * place).sum()
    ) / total


@pytest.mark.parametrize("depth", [0, 3])
def test_rotation_keeps_the_distance_to_the_centre_and_the_bound(depth: int) -> None:
    disk = _disk(0.5, 0.0).repeat(200, 1, 1, 1)
    images = disk.unsqueeze(2).repeat(1, 1, depth, 1, 1) if depth else disk
    angles = []
    for view in _views(AugmentationConfig(rotation_degrees=30.0), images):
        x, y = _centre(view)
        assert math.hypot(x, y) == pytest.approx(0.5, abs=0.01)
        angles.append(math.degrees(math.atan2(y, x)))
    assert max(map(abs, angles)) <= 30.5
    assert min(angles) < -25
    assert max(angles) > 25


def test_shift_and_scale_keep_their_bounds() -> None:
    images = _disk(0.0, 0.0).repeat(200, 1, 1, 1)
    centres = [_centre(view) for view in _views(AugmentationConfig(shift=0.1), images)]
    for places in zip(*centres, strict=True):
        assert max(map(abs, places)) <= 0.205  # a tenth of a side that is 2 long
        assert min(places) < -0.18
        assert max(places) > 0.18
    off = _disk(0.5, 0.0).repeat(200, 1, 1, 1)
    places = [_centre(view)[0] / 0.5 for view in _views(AugmentationConfig(scale=0.2), off)]
    assert 0.79 < min(places) < 0.83
    assert 1.17 < max(places) < 1.21


def test_turned_and_scaled_shapes_keep_their_angles() -> None:
    both = AugmentationConfig(rotation_degrees=45.0, scale=0.15)
    right, down = _disk(0.2, 0.0).repeat(200, 1, 1, 1), _disk(0.0, 0.2).repeat(200, 1, 1, 1)
    for first, second in zip(_views(both, right), _views(both, down), strict=True):
        (x, y), (u, v) = _centre(first), _centre(second)
        assert x * u + y * v == pytest.approx(0.0, abs=0.005)
        assert math.hypot(x, y) == pytest.approx(math.hypot(u, v), abs=0.01)
        assert 0.165 < math.hypot(x, y) < 0.235
        assert abs(math.degrees(math.atan2(y, x))) <= 45.5


def test_nothing_dark_comes_in_from_the_edges() -> None:
    images = torch.full((20, 1, 16, 16), 0.7)
    moved = _views(AugmentationConfig(rotation_degrees=180.0, shift=0.5, scale=0.5), images)
    torch.testing.assert_close(moved, images)


def test_slices_of_a_volume_move_alike() -> None:
    volume = _disk(0.3, 0.2)[:, :, None].repeat(1, 1, 4, 1, 1)
    view = _views(_all(flip_slices=False), volume)
    assert bool((view == view[:, :, :1]).all())


def test_intensity_keeps_its_bounds() -> None:
    images = torch.full((500, 1, 2, 2), 0.5)
    values = _views(AugmentationConfig(brightness=0.2), images)[:, 0, 0, 0]
    assert 0.3 <= float(values.min()) < 0.32
    assert 0.68 < float(values.max()) <= 0.7
    pair = torch.tensor([0.3, 0.7]).repeat(500, 1, 2, 1)
    views = _views(AugmentationConfig(contrast=0.5), pair)[:, 0, 0]
    gains = (views[:, 1] - views[:, 0]) / 0.4
    assert 0.5 <= float(gains.min()) < 0.53
    assert 1.47 < float(gains.max()) <= 1.501


@pytest.mark.parametrize(
    ("images", "k", "words"),
    [(torch.zeros(2, 1, 8, 8), 0, "k=0"), (torch.zeros(2, 8, 8), 1, "3 dimensions")],
)
def test_strange_input_is_refused(images: torch.Tensor, k: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _views(_all(), images, k)


@pytest.mark.parametrize("name", ["rotation_degrees", "shift", "scale", "brightness", "contrast"])
@pytest.mark.parametrize("value", [-0.1, 181.0, math.nan])
def test_settings_are_bounded(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"training\.augmentation\.{name}="):
        AugmentationConfig(**{name: value})
