"""Images from moments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import models
from common.errors import UsageError
from common.generators.moments import (
    MomentGenerator,
    MomentSettings,
    build,
    own_class_losses,
)
from common.generators.sampling import sample


def make(detail: int = 4, texture: int = 2, size: int = 32) -> MomentGenerator:
    return build(MomentSettings(detail=detail, texture=texture), image_size=size, num_classes=2)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    detail=st.integers(2, 9),
    texture=st.integers(0, 3),
)
def test_no_image_has_features_longer_than_one(
    seed: int, scale: float, detail: int, texture: int
) -> None:
    images = torch.randn((3, 1, 32, 32), generator=torch.Generator().manual_seed(seed)) * scale
    norms = make(detail, texture).features(images).norm(dim=1)
    assert float(norms.max()) <= 1 + 1e-6


def test_the_gradient_of_an_images_loss_is_minus_its_features_at_its_class() -> None:
    model = make()
    image, label = torch.rand(1, 1, 32, 32), torch.tensor([1])
    own_class_losses(model(image), label).sum().backward()
    assert model.moments.grad is not None
    assert torch.allclose(model.moments.grad[1], -model.features(image)[0])
    assert not model.moments.grad[0].any()


def drawn_from(means: torch.Tensor, spread: float, count: int = 4000) -> torch.Tensor:
    """Codes (C, count, d) of Gaussians, short enough not to be cut."""
    noise = torch.randn((*means.shape[:1], count, means.shape[1]))
    return means[:, None] + spread * noise


def test_moments_of_known_gaussians_are_read_back() -> None:
    torch.manual_seed(0)
    model = make(detail=3, texture=0)
    size = model.gaussians()[0].shape[1]
    truth = torch.randn(2, size) * 0.1
    images = model._code.decode(
        drawn_from(truth, 0.05).flatten(0, 1) * model._radius, torch.Generator()
    )
    features = model.features(images).unflatten(0, (2, -1))
    for shares in ([0.5, 0.5], [0.9, 0.1]):
        with torch.no_grad():
            model.moments.copy_(features.mean(1) * torch.tensor(shares)[:, None])
        means, spreads = model.gaussians()
        assert torch.allclose(means, truth, atol=0.01)
        assert torch.allclose(spreads, torch.full_like(spreads, 0.05), atol=0.005)


@pytest.mark.parametrize("value", [0.0, -5.0, 5.0])
def test_any_moments_give_images(value: float) -> None:
    """Noise may leave moments that no images have: shares below 0, squares below means'."""
    model = make()
    with torch.no_grad():
        model.moments.copy_(value * torch.randn_like(model.moments))
    images = sample(model, torch.tensor([0, 1, 1]), torch.Generator().manual_seed(0))
    assert bool(images.isfinite().all())
    assert 0 <= float(images.min()) < float(images.max()) <= 1


def test_it_travels_by_the_seam_of_any_model() -> None:
    sender, receiver = make(), make()
    with torch.no_grad():
        sender.moments.copy_(torch.rand_like(sender.moments) / 10)
    weights = models.trainable_weights(sender)
    assert set(weights) == {"moments"}
    models.load_trainable_weights(receiver, weights)
    labels = torch.tensor([0, 1])
    images = [sample(g, labels, torch.Generator().manual_seed(3)) for g in (sender, receiver)]
    assert torch.equal(*images)
    assert models.frozen_sha256(sender) == models.frozen_sha256(receiver)


@pytest.mark.parametrize(("classes", "size", "detail"), [(1, 32, 4), (2, 36, 4), (2, 32, 40)])
def test_what_cannot_be_built_is_refused(classes: int, size: int, detail: int) -> None:
    with pytest.raises(UsageError):
        build(MomentSettings(detail=detail), image_size=size, num_classes=classes)
