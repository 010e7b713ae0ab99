"""The paper's discriminator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.generators.discriminator import Discriminator, with_class


def test_the_papers_channels_at_128_pixels() -> None:
    with torch.device("meta"):
        model = Discriminator(image_size=128, num_classes=2, width=1.0)
    layers = [m for m in model.body if isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in layers] == [2, 64, 128, 256, 512]
    assert {(m.kernel_size, m.stride, m.padding) for m in layers} == {((6, 6), (2, 2), (2, 2))}
    assert (model.top.in_channels, model.top.out_channels) == (1024, 1)
    assert isinstance(model.embed[0], nn.Embedding)
    assert model.embed[0].weight.shape == (2, 50)
    assert isinstance(model.embed[1], nn.Linear)
    assert model.embed[1].out_features == 128 * 128


@pytest.mark.parametrize("size", [32, 64, 128])
def test_one_logit_for_each_image_from_the_image_and_its_class(size: int) -> None:
    torch.manual_seed(0)
    model = Discriminator(image_size=size, num_classes=3, width=1 / 16)
    images, labels = torch.rand(3, 1, size, size) * 2 - 1, torch.tensor([0, 1, 2])
    logits = model(with_class(images, labels))
    assert logits.shape == (3, 1)
    alone = model(with_class(images[1:2], labels[1:2]))
    assert torch.allclose(alone, logits[1:2], atol=1e-5)
    other_class = model(with_class(images[1:2], labels[2:3]))
    other_image = model(with_class(images[:1], labels[1:2]))
    assert not torch.allclose(other_class, logits[1:2], atol=1e-6)
    assert not torch.allclose(other_image, logits[1:2], atol=1e-6)


def test_the_class_travels_as_a_plane() -> None:
    images, labels = torch.zeros(2, 1, 3, 3), torch.tensor([0, 4])
    both = with_class(images, labels)
    assert both.shape == (2, 2, 3, 3)
    assert both[:, 1].flatten(1).tolist() == [[0.0] * 9, [4.0] * 9]
