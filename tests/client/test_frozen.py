from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from client import classifier as classifier_module
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds
from client.frozen import FrozenBackbone
from client.local_model import Surroundings
from common import models
from common.config import AugmentationConfig, FinetuneConfig, FinetuneMode, ModelConfig
from common.messages import Recipe

HEAD = FinetuneConfig(mode=FinetuneMode.head)
VIT = ModelConfig(architecture="test_vit", patch_size=16)
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=0.5,
    noise_multiplier=1.0,
    steps=4,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="adam",
    learning_rate=0.01,
    physical_batch=4,
)


def site_model(config: ModelConfig = VIT, finetune: FinetuneConfig = HEAD) -> SiteModel:
    return SiteModel(config=config, finetune=finetune, image_size=32, num_classes=2, seed=3)


def cohort() -> Cohort:
    patients = np.repeat(np.arange(10), 2)
    return Cohort(
        images=np.random.default_rng(0).random((20, 1, 32, 32), dtype=np.float32),
        labels=patients % 2,
        patients=patients,
        num_patients=10,
        patient_ids=(),
    )


def test_features_and_last_layer_make_the_models_logits() -> None:
    model = site_model().build()
    backbone = FrozenBackbone.of(model, (1, 32, 32))
    assert backbone is not None
    images = cohort().images
    model.eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(images) * 2 - 1)
        found = backbone.head(torch.from_numpy(backbone.features(images)))
    assert torch.allclose(found, expected, atol=1e-5)


def test_features_are_kept_by_weights_and_pixels(tmp_path: Path) -> None:
    images = cohort().images
    backbone = FrozenBackbone.of(site_model().build(), (1, 32, 32))
    assert backbone is not None
    found = backbone.features(images, tmp_path)
    (path,) = tmp_path.iterdir()
    assert np.array_equal(found, backbone.features(images))
    np.save(path, found + 1)
    assert np.array_equal(backbone.features(images, tmp_path), found + 1), "not read from there"
    assert np.array_equal(
        backbone.features(images + 0.01, tmp_path), backbone.features(images + 0.01)
    )
    other = FrozenBackbone.of(replace(site_model(), seed=4).build(), (1, 32, 32))
    assert other is not None
    assert np.array_equal(other.features(images, tmp_path), other.features(images))
    assert len(list(tmp_path.iterdir())) == 3


SHIFT = {"head.weight": torch.full((2, 64), 0.05), "head.bias": torch.tensor([0.1, -0.1])}


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    ("change", "shift"),
    [
        ({}, None),
        ({"proximal_mu": 0.5}, None),
        ({"controlled": True, "optimizer": "sgd", "momentum": 0.0}, SHIFT),
    ],
)
def test_training_gives_the_same_weights_and_asks_the_backbone_once(
    mechanism: str,
    center: bool,
    change: dict[str, Any],
    shift: dict[str, Tensor] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = 1.0 if mechanism == "dp_sgd" else 0.0
    recipe = replace(RECIPE, mechanism=mechanism, noise_multiplier=noise, **change)
    finetune = replace(HEAD, center=center)
    prefix = "head.linear" if center else "head"
    named = {name.replace("head", prefix): value for name, value in (shift or {}).items()}
    asked: list[int] = []

    def trained(*, cached: bool, shift: dict[str, Tensor]) -> dict[str, np.ndarray]:
        with monkeypatch.context() as patch:
            if not cached:
                patch.setattr(classifier_module.FrozenBackbone, "of", lambda *_: None)
            model = site_model(finetune=finetune)
            training = model.prepare(recipe, Surroundings(cohort=cohort()))
            training.model.register_forward_hook(lambda *_: asked.append(1))
            training.train(cohort(), recipe, RoundSeeds(sampling=1, noise=2), shift)
        return models.trainable_weights(training.model)

    known = trained(cached=True, shift=named)
    assert asked == []
    full = trained(cached=False, shift=named)
    assert asked
    assert known.keys() == full.keys() == {f"{prefix}.weight", f"{prefix}.bias"}
    for name, value in full.items():
        assert np.allclose(known[name], value, atol=1e-4), name
    if shift:
        unmoved = trained(cached=True, shift={})
        assert not np.allclose(unmoved[f"{prefix}.bias"], known[f"{prefix}.bias"], atol=1e-3)


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
def test_of_volumes_the_slices_are_asked_once(
    mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decides how much a slice counts is trained on features of slices."""
    noise = 1.0 if mechanism == "dp_sgd" else 0.0
    recipe = replace(RECIPE, mechanism=mechanism, noise_multiplier=noise)
    slices = np.random.default_rng(1).random((20, 1, 3, 32, 32), dtype=np.float32)
    volumes = replace(cohort(), images=slices)
    asked: list[int] = []

    def trained(*, cached: bool) -> dict[str, np.ndarray]:
        with monkeypatch.context() as patch:
            if not cached:
                patch.setattr(classifier_module.FrozenBackbone, "of", lambda *_: None)
            model = replace(site_model(), depth=3)
            training = model.prepare(recipe, Surroundings(cohort=volumes))
            training.model.register_forward_hook(lambda *_: asked.append(1))
            training.train(volumes, recipe, RoundSeeds(sampling=1, noise=2))
        return models.trainable_weights(training.model)

    known = trained(cached=True)
    assert asked == []
    full = trained(cached=False)
    assert asked
    first = models.trainable_weights(replace(site_model(), depth=3).build())
    assert known.keys() == full.keys() == first.keys()
    assert {name.split(".")[0] for name in known} == {"pool"}
    for name, value in full.items():
        assert np.allclose(known[name], value, atol=1e-4), name
        assert not np.allclose(known[name], first[name], atol=1e-3), name


class Mixing(nn.Module):
    """Features of an image depend on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = site_model().build()

    def get_classifier(self) -> Any:
        return self.inner.get_classifier()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images - 0.1 * images.mean(0))


class After(Mixing):
    """Something comes after the last layer."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * 2


class Twice(Mixing):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) + self.inner(-images)


class Dropping(Mixing):
    def forward(self, images: Tensor) -> Tensor:
        return self.inner(nn.functional.dropout(images, 0.2, self.training))


@pytest.mark.parametrize("kind", [Mixing, After, Twice, Dropping])
def test_what_cannot_be_asked_once_is_left_alone(kind: type[nn.Module]) -> None:
    assert FrozenBackbone.of(kind(), (1, 32, 32)) is None


def test_more_than_the_last_layer_is_left_alone() -> None:
    for mode in (FinetuneMode.all, FinetuneMode.bitfit, FinetuneMode.last_blocks):
        model = site_model(finetune=FinetuneConfig(mode=mode)).build()
        assert FrozenBackbone.of(model, (1, 32, 32)) is None


def test_stochastic_depth_is_left_alone() -> None:
    model = timm.create_model("test_vit", num_classes=2, drop_path_rate=0.9, in_chans=1)
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    assert FrozenBackbone.of(model, (1, 160, 160)) is None


@pytest.mark.parametrize(
    ("change", "augmentation"),
    [
        ({"augmentation_multiplicity": 2}, AugmentationConfig()),
        ({}, AugmentationConfig(flip_horizontal=True)),
        ({"precision": "bf16"}, AugmentationConfig()),
        ({"engine": "opacus_hooks"}, AugmentationConfig()),
    ],
)
def test_recipes_that_need_the_images_get_them(
    change: dict[str, Any], augmentation: AugmentationConfig
) -> None:
    recipe = replace(RECIPE, **change)
    around = Surroundings(cohort=cohort(), augmentation=augmentation)
    asked: list[int] = []
    training = site_model().prepare(recipe, around)
    training.model.register_forward_hook(lambda *_: asked.append(1))
    training.train(cohort(), recipe, RoundSeeds(sampling=1, noise=2))
    assert asked
