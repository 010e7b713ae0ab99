"""Images drawn in batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.generators.conditional_gan import build
from common.generators.sampling import sample
from common.generators.settings import GanSettings


class Painter(nn.Module):
    """Paints the class into the first pixel and a random number into the second."""

    image_size = 4
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.drawn_in: list[tuple[bool, bool]] = []

    def images(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        self.sizes.append(len(labels))
        self.drawn_in.append((self.training, torch.is_grad_enabled()))
        images = torch.full((len(labels), 1, 4, 4), 1.5)
        images[:, 0, 0, 0] = labels / 10
        images[:, 0, 0, 1] = torch.rand(len(labels), generator=generator)
        return images


@pytest.mark.parametrize("count", [0, 1, 75])
def test_one_image_of_each_class_in_order_whatever_the_batches(count: int) -> None:
    labels = torch.arange(count) % 3
    painter = Painter().train()
    images = sample(painter, labels, torch.Generator().manual_seed(0))
    assert images.shape == (count, 1, 4, 4)
    assert torch.allclose(images[:, 0, 0, 0], labels / 10)
    assert len(images[:, 0, 0, 1].unique()) == count
    assert float(images.max() if count else 1.0) == 1.0
    assert sum(painter.sizes) == count
    assert max(painter.sizes, default=0) <= 32
    assert painter.training
    assert set(painter.drawn_in) <= {(False, False)}


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([0, 3]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([[0]])],
    ids=str,
)
def test_unknown_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels: "):
        sample(Painter(), labels, torch.Generator())


def test_a_gan_draws_the_same_images_from_the_same_seed() -> None:
    gan = build(GanSettings(width=1 / 16), image_size=32, num_classes=2, seed=0)
    labels = torch.tensor([0, 1, 1])
    first, same, other = (
        sample(gan, labels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) < float(first.max()) <= 1
