"""The paper's generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.generators.generator import Generator


def test_the_papers_channels_at_128_pixels() -> None:
    with torch.device("meta"):
        body = Generator(image_size=128, num_classes=2, width=1.0).body
    layers = [m for m in body if isinstance(m, nn.ConvTranspose2d)]
    assert [m.in_channels for m in layers] == [200, 1024, 512, 256, 128, 64]
    assert layers[-1].out_channels == 1
    assert {m.kernel_size for m in layers} == {(4, 4)}
    assert sum(isinstance(m, nn.InstanceNorm2d) for m in body) == 5
    assert isinstance(body[-1], nn.Tanh)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_images_of_the_asked_size_within_range(size: int, num_classes: int) -> None:
    model = Generator(image_size=size, num_classes=num_classes, width=1 / 16)
    images = model(torch.randn(num_classes, 100), torch.arange(num_classes)).detach()
    assert images.shape == (num_classes, 1, size, size)
    assert -1 <= float(images.min()) < float(images.max()) <= 1


def test_noise_and_class_both_matter_and_no_image_depends_on_another() -> None:
    torch.manual_seed(0)
    model = Generator(image_size=32, num_classes=3, width=1 / 8)
    noise, labels = torch.randn(4, 100), torch.tensor([0, 1, 2, 0])
    images = model(noise, labels)
    assert torch.allclose(model(noise[2:3], labels[2:3]), images[2:3], atol=1e-5)
    assert not torch.allclose(model(noise[2:3], labels[:1]), images[2:3], atol=1e-3)
    assert not torch.allclose(model(noise[1:2], labels[2:3]), images[2:3], atol=1e-3)
