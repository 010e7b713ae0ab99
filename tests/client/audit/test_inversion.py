"""One update gives an image away, unless it is private: through a real site."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.audit.inversion import Victim, check, gradients, invert, one_step, plain
from client.audit.likeness import ssim
from client.classifier import SiteModel
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.errors import UsageError
from common.messages import Recipe
from common.seeds import SimulatedSeeds

SIZE = 32
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=0.25,
    noise_multiplier=1.2,
    steps=5,
    max_grad_norm=1.0,
    images_per_patient=4,
    optimizer="adam",
    learning_rate=1e-3,
    physical_batch=32,
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def site_model(mode: FinetuneMode = FinetuneMode.all, name: str = "test_vit") -> SiteModel:
    patch = 8 if name == "test_vit" else None
    return SiteModel(
        config=ModelConfig(name=name, architecture=name, patch_size=patch),
        finetune=FinetuneConfig(mode=mode),
        image_size=SIZE,
        num_classes=2,
        seed=3,
    )


def picture() -> np.ndarray:
    """A bright disc on a slope, (1, S, S) in [0, 1]: all rows and columns differ."""
    rows, columns = np.indices((SIZE, SIZE)) / SIZE
    disc = np.hypot(rows - 0.4, columns - 0.6) < 0.2
    return np.clip(0.2 * rows + 0.4 * columns + 0.4 * disc, 0, 1)[None].astype(np.float32)


def victim() -> Victim:
    return Victim(model=site_model(), seeds=SimulatedSeeds(run_seed=1, site="attacked"))


def test_without_privacy_the_image_comes_back(folder: Path) -> None:
    image = picture()
    found = victim().attack(image, 1, plain(RECIPE))
    assert np.abs(found.image - image[0]).max() < 1e-2
    assert ssim(found.image, image[0]) > 0.99
    assert found.epsilon == math.inf
    assert list(folder.glob("fedward-audit-*")) == []


def test_with_privacy_it_does_not() -> None:
    image = picture()
    found = victim().attack(image, 1, RECIPE)
    stretched = (found.image - found.image.min()) / np.ptp(found.image)
    for shown in (found.image, stretched):
        assert ssim(shown, image[0]) < 0.3
        assert abs(np.corrcoef(shown.ravel(), image.ravel())[0, 1]) < 0.2
    # one Gaussian step of every patient: by its closed form about 3.5
    assert 3 < found.epsilon < 4


def test_it_is_the_noise_that_hides_it_and_not_the_clipping() -> None:
    image = picture()
    found = victim().attack(image, 1, replace(RECIPE, noise_multiplier=1e-7))
    assert ssim(found.image, image[0]) > 0.9


def test_the_step_is_one_that_hides_nothing() -> None:
    step = one_step(replace(RECIPE, proximal_mu=0.1, synthetic_ratio=1.0))
    assert (step.steps, step.sampling_rate, step.optimizer, step.momentum) == (1, 1.0, "sgd", 0.0)
    assert (step.proximal_mu, step.mixes) == (0.0, False)
    assert step.noise_multiplier == RECIPE.noise_multiplier  # the private part is as it was


def test_patches_are_put_where_they_were() -> None:
    """By hand: gradients that three known numbers a token make of a known image."""
    model = site_model().build()
    image = picture()[0].astype(np.float64)
    patches = (2 * image - 1).reshape(4, 8, 4, 8).swapaxes(1, 2).reshape(16, 64)
    tokens = np.random.default_rng(0).normal(size=(16, 64))
    found = invert(
        {
            "patch_embed.proj.weight": (tokens.T @ patches).reshape(64, 1, 8, 8),
            "pos_embed": np.concatenate([np.ones((1, 64)), tokens])[None],
        },  # pyright: ignore[reportArgumentType]
        model,
    )
    assert np.abs(found - image).max() < 1e-6


def test_an_update_is_a_difference() -> None:
    sent, back = {"w": np.ones(2, np.float32)}, {"w": np.array([0.5, 1.5], np.float32)}
    assert gradients(sent, back)["w"].tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    "model",
    [site_model(FinetuneMode.head), site_model(name="test_convnext")],
    ids=["head", "convolutional"],
)
def test_other_models_are_refused(model: SiteModel) -> None:
    with pytest.raises(UsageError, match="use model=vit_tiny finetune=all"):
        check(model.build())
