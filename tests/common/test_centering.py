from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common import models
from common.centering import CenteredHead, center_head, centered_head, contentless
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.errors import UsageError

HEAD = FinetuneConfig(mode=FinetuneMode.head, center=True)
VIT = ModelConfig(architecture="test_vit", patch_size=16)


def build(finetune: FinetuneConfig = HEAD, config: ModelConfig = VIT) -> nn.Module:
    return models.build(config, finetune, image_size=32, num_classes=2, seed=3)


def test_images_without_content_are_grey_differ_and_come_back_the_same() -> None:
    images = contentless(6, 40)
    assert images.shape == (6, 1, 40, 40)
    assert images.dtype == np.float32
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    assert (images.std(axis=(1, 2, 3)) > 0.01).all()
    assert len({image.tobytes() for image in images}) == 6
    assert np.array_equal(images, contentless(6, 40))


def test_amplitudes_fall_with_frequency() -> None:
    size = 64
    spectrum = np.abs(np.fft.fft2(contentless(30, size)[:, 0])).mean(axis=0)
    low, high = spectrum[0, 2], spectrum[0, 16]
    assert 6 < low / high < 50  # exponents 1 to 2 alone would give 8 to 64


def test_the_head_gets_features_of_one_length_without_what_all_images_share() -> None:
    model = build()
    head = centered_head(model)
    assert head is not None
    seen: list[torch.Tensor] = []
    head.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.from_numpy(contentless(48, 32)) * 2 - 1
    with torch.no_grad():
        logits = model.eval()(images)
        shown = seen[0]
        assert torch.allclose(logits, head.linear(shown))
    assert torch.allclose(shown.norm(dim=1), torch.full((48,), 4.0), atol=1e-4)
    assert shown.mean(dim=0).norm() < 0.5 * 4.0

    plain: Any = build(FinetuneConfig(mode=FinetuneMode.head))
    with torch.no_grad():
        features = plain.forward_head(plain.forward_features(images), pre_logits=True)
    assert torch.allclose(head.center, features.mean(dim=0), atol=1e-5)


def test_the_centre_does_not_travel_and_both_sides_agree_on_it() -> None:
    model, other = build(), build()
    assert set(models.trainable_weights(model)) == {"head.linear.weight", "head.linear.bias"}
    assert models.frozen_sha256(model) == models.frozen_sha256(other)
    moved = centered_head(other)
    assert moved is not None
    moved.center[0] += 1.0
    assert models.frozen_sha256(model) != models.frozen_sha256(other)
    assert models.trained_top(model) is centered_head(model).linear  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("architecture", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_other_families(architecture: str) -> None:
    config = ModelConfig(architecture=architecture, patch_size=None, window_size=None)
    model = build(config=config)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 2)
    assert models.trained_top(model) is not None


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(3, 2)), build(config=ModelConfig(architecture="test_vit"))]
)
def test_a_classifier_that_is_not_one_layer_is_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"finetune\.center=false"):
        center_head(model)


def test_weights_that_a_run_left_are_laid_over(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    first = build()
    head = centered_head(first)
    assert head is not None
    save_file({"head.linear.weight": torch.ones(2, head.linear.in_features)}, path)
    config = ModelConfig(architecture="test_vit", patch_size=16, start=path)
    begun = build(config=config)
    again = centered_head(begun)
    assert isinstance(again, CenteredHead)
    assert (again.linear.weight == 1).all()
    assert torch.equal(again.center, head.center)
    save_file({"head.linear.weight": head.linear.weight, "head.center": head.center + 1}, path)
    moved = centered_head(build(config=config))
    assert moved is not None
    assert torch.equal(moved.center, head.center + 1)
    with pytest.raises(UsageError, match=r"head\..* does not fit this model"):
        build(FinetuneConfig(mode=FinetuneMode.head), config)
    path.write_bytes(b"no")
    with pytest.raises(UsageError, match=r"model\.start=.*not a safetensors file"):
        build(config=config)
