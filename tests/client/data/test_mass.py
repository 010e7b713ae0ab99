from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from client.data.mass import Mass, draw_mass, draw_view


def _draw(count: int, *, malignant: bool) -> list[Mass]:
    return [
        draw_mass(np.random.default_rng([index, malignant]), malignant=malignant)
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("feature", "low", "high"),
    [
        (lambda mass: len(mass.spicule_angles), 0.9, 0.999),
        (lambda mass: np.abs(mass.lobes).sum(), 0.9, 0.999),
        (lambda mass: mass.margin_mm, 0.9, 0.999),
        (lambda mass: mass.contrast, 0.55, 0.85),
        (lambda mass: mass.radius_mm, 0.42, 0.58),
    ],
    ids=["spicules", "irregularity", "margin", "contrast", "radius"],
)
def test_features_separate_the_classes_with_overlap(
    feature: object, low: float, high: float
) -> None:
    """No single feature decides; size says nothing at all."""
    masses = _draw(400, malignant=False) + _draw(400, malignant=True)
    values = [feature(mass) for mass in masses]  # type: ignore[operator]
    assert low < roc_auc_score([0] * 400 + [1] * 400, values) < high


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 4), st.sampled_from([16, 33, 64, 128]))
def test_pictures_are_finite_and_of_the_asked_size(
    seed: int, malignant: bool, density: int, size: int
) -> None:
    generator = np.random.default_rng(seed)
    mass = draw_mass(generator, malignant=malignant)
    picture = draw_view(generator, mass, density=density, size=size, field_mm=35)
    assert picture.shape == (size, size)
    assert picture.dtype == np.float32
    assert np.isfinite(picture).all()
    assert -0.5 < picture.min() < picture.max() < 2


def test_dense_breasts_are_brighter() -> None:
    means = []
    for density in (1, 2, 3, 4):
        generator = np.random.default_rng(0)
        mass = draw_mass(generator, malignant=False)
        views = [
            draw_view(generator, mass, density=density, size=32, field_mm=35) for _ in range(20)
        ]
        means.append(np.mean(views))
    assert means == sorted(means)
