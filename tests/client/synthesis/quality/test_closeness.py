from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from client.synthesis.quality.closeness import in_features, in_pixels, of_patients


def _textures(seed: int, count: int) -> np.ndarray:
    """(count, 1, 64, 64) smooth random pictures in [0, 1]."""
    noise = np.random.default_rng(seed).normal(size=(count, 64, 64))
    smooth = np.stack([gaussian_filter(one, 5, mode="wrap") for one in noise])
    smooth -= smooth.min(axis=(1, 2), keepdims=True)
    return (smooth / smooth.max(axis=(1, 2), keepdims=True))[:, None].astype(np.float32)


def _noisy(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(9).normal(scale=0.05, size=images.shape)
    return np.clip(images + noise, 0, 1).astype(np.float32)


_COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exact": lambda images: images,
    "left and right": lambda images: images[..., ::-1],
    "upside down": lambda images: images[..., ::-1, :],
    "shifted": lambda images: np.roll(images, (3, -2), axis=(2, 3)),
    "noisy": _noisy,
    "paler": lambda images: images * 0.6 + 0.2,
}


@pytest.mark.parametrize("kind", _COPIES)
def test_copies_are_near_in_pixels_and_others_are_not(kind: str) -> None:
    train, held_out, others = _textures(0, 12), _textures(1, 12), _textures(2, 40)
    copies = _COPIES[kind](train[:4])
    found = in_pixels(train, held_out, np.concatenate([copies, others]).astype(np.float32))
    assert found.train[:4].max() < 0.2 < found.train[4:].min()
    assert found.held_out.min() > 0.2
    assert found.synthetic_to_train[:4].max() < found.synthetic_to_train[4:].min()


def test_a_score_does_not_depend_on_other_patients() -> None:
    train, held_out, made = _textures(0, 12), _textures(1, 5), _textures(2, 30)
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(count, 7)) for count in (12, 5, 30)]
    changed = train.copy()
    changed[3] = 0
    changed_features = features[0].copy()
    changed_features[3] = 1e3
    rest = np.arange(12) != 3
    for before, after in (
        (in_pixels(train, held_out, made), in_pixels(changed, held_out[:2], made)),
        (in_features(*features), in_features(changed_features, features[1][:2], features[2])),
    ):
        assert np.allclose(before.train[rest], after.train[rest], rtol=1e-6)
        assert np.allclose(before.held_out[:2], after.held_out, rtol=1e-6)
        assert before.train[3] != after.train[3]


def test_copies_are_near_in_features() -> None:
    rng = np.random.default_rng(0)
    # Two directions hold nearly all the variance and say nothing of who it is.
    scale = np.concatenate([[100.0, 50.0], np.ones(30)])
    train, held_out, others = (rng.normal(size=(n, 32)) * scale + 7 for n in (20, 20, 400))
    copies = train[:3] + rng.normal(size=(3, 32)) * 0.05
    found = in_features(train, held_out, np.concatenate([copies, others]))
    assert found.train[:3].max() < 0.2 < min(found.train[3:].min(), found.held_out.min())


def test_flat_images_are_no_copies_of_each_other() -> None:
    flat = np.full((3, 1, 64, 64), 0.5, dtype=np.float32)
    flat[1:] += np.linspace(-0.002, 0.002, 64, dtype=np.float32)
    found = in_pixels(flat, _textures(1, 3), np.concatenate([flat, _textures(2, 20)]))
    assert found.train.min() > 0.5


def test_equal_synthetic_images_leave_no_scale() -> None:
    made = np.repeat(_textures(0, 1), 20, axis=0)
    found = in_pixels(made[:1], _textures(1, 2), made)
    assert found.train[0] < 0.2
    assert np.isfinite(found.held_out).all()
    points = np.ones((20, 3))
    assert np.isfinite(in_features(points[:2], np.eye(3), points).held_out).all()


def test_a_patient_is_as_near_as_its_nearest_image() -> None:
    found = of_patients(np.array([0.9, 0.3, 0.5]), np.array([1, 1, 0]), 3)
    assert found.tolist() == [0.5, 0.3, np.inf]
