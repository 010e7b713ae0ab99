from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from client.data.cohort import Cohort
from client.synthesis.quality.assessment import QualitySettings, assess
from client.synthesis.quality.backbone import Backbone
from client.synthesis.quality.images import LabelledImages
from common.config import ModelConfig, TaskKind
from common.errors import UsageError
from common.task import Task

_TASK = Task(kind=TaskKind.binary, names=("malignant",))


def _images(seed: int, count: int, smooth: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 has a bright disc somewhere."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    planes = np.stack([gaussian_filter(one, smooth) for one in rng.normal(size=(count, 32, 32))])
    planes = 0.3 + 0.1 * planes / planes.std()
    row, column = np.indices((32, 32))
    for plane, (x, y) in zip(planes[1::2], rng.integers(10, 22, size=(count, 2)), strict=False):
        plane[(row - x) ** 2 + (column - y) ** 2 < 30] += 0.4
    return np.clip(planes, 0, 1)[:, None].astype(np.float32), labels


def _cohort(seed: int, num_patients: int) -> Cohort:
    images, labels = _images(seed, 2 * num_patients)
    return Cohort(
        images=images,
        labels=labels,
        patients=np.arange(2 * num_patients) // 2,
        num_patients=num_patients,
        patient_ids=tuple(f"patient-{n}" for n in range(num_patients)),
    )


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    config = ModelConfig(architecture="vit_tiny_patch16_224", patch_size=8)
    return Backbone.load(config, image_size=32, seed=0)


@pytest.fixture(scope="module")
def settings(backbone: Backbone) -> QualitySettings:
    return QualitySettings(backbone=backbone, task=_TASK)


def test_images_of_the_same_kind_against_coarser_and_copied_ones(
    settings: QualitySettings,
) -> None:
    train, held_out = _cohort(0, 60), _cohort(1, 40)
    images, labels = _images(2, 160)
    good = assess(LabelledImages(images=images, labels=labels), train, held_out, settings=settings)
    assert not good.memorisation.suspected
    rough, _ = _images(3, 160, smooth=0.5)
    bad = assess(LabelledImages(images=rough, labels=labels), train, held_out, settings=settings)
    assert bad.radiomics.synthetic > 5 * good.radiomics.synthetic
    assert bad.frechet.synthetic > 1.5 * good.frechet.synthetic
    assert bad.radiomics.real == good.radiomics.real
    assert bad.manifold.precision < good.manifold.precision
    copies = images.copy()
    copies[:40] = train.images[:40, :, ::-1]
    kept = assess(LabelledImages(images=copies, labels=labels), train, held_out, settings=settings)
    assert kept.memorisation.suspected
    assert kept.memorisation.spaces[1].copied_train == 20
    written = json.loads(json.dumps(kept.to_dict(), allow_nan=False))
    assert written["stays_in_the_hospital"] is True
    assert written["memorisation"]["copied_patients"] == 20
    assert "patient-" not in json.dumps(written) + repr(kept)


def test_progress_ends_with_every_image(settings: QualitySettings) -> None:
    told: dict[str, tuple[int, int]] = {}
    images, labels = _images(2, 40)
    told_settings = QualitySettings(
        backbone=settings.backbone,
        task=_TASK,
        progress=lambda what, done, total: told.update({what: (done, total)}),
    )
    made = LabelledImages(images=images, labels=labels)
    once = assess(made, _cohort(0, 12), _cohort(1, 10), settings=told_settings)
    again = assess(made, _cohort(0, 12), _cohort(1, 10), settings=settings)
    assert told == {
        "features of synthetic images": (40, 40),
        "features of training images": (24, 24),
        "features of held-out images": (20, 20),
        "radiomics of synthetic images": (40, 40),
        "radiomics of training images": (24, 24),
        "radiomics of held-out images": (20, 20),
        "pixels compared": (44, 44),
    }
    assert once.to_dict() == again.to_dict()


def test_features_are_those_of_the_model_without_its_head(backbone: Backbone) -> None:
    images, _ = _images(0, 40)
    found = backbone.features(images)
    assert found.shape == (40, 192)
    assert np.allclose(found[33], backbone.features(images[33:34])[0], atol=1e-4)
    assert "random weights" in backbone.name
    doubled = images.repeat(2, axis=2).repeat(2, axis=3)
    assert np.allclose(backbone.features(doubled), found, atol=1e-3)


def test_what_is_refused_before_anything_is_computed(settings: QualitySettings) -> None:
    train, held_out = _cohort(0, 5), _cohort(1, 5)
    images, labels = _images(2, 40)
    small = LabelledImages(images=images[:, :, :16, :16], labels=labels)
    with pytest.raises(UsageError, match="one size"):
        assess(small, train, held_out, settings=settings)
    few = LabelledImages(images=images[:4], labels=labels[:4])
    with pytest.raises(UsageError, match="at least 10"):
        assess(few, train, held_out, settings=settings)
    several = Task(kind=TaskKind.multilabel, names=("a", "b"))
    made = LabelledImages(images=images, labels=labels)
    with pytest.raises(UsageError, match="multi-label"):
        assess(
            made,
            train,
            held_out,
            settings=QualitySettings(backbone=settings.backbone, task=several),
        )
