"""The GAN as one model that travels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from common import models
from common.errors import UsageError
from common.generators.conditional_gan import ConditionalGan, build
from common.generators.settings import GanSettings

SMALL = GanSettings(width=1 / 16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(seed: int = 0, **changes: object) -> ConditionalGan:
    settings = GanSettings(width=1 / 16, **changes)  # pyright: ignore[reportArgumentType]
    return build(settings, image_size=32, num_classes=2, seed=seed)


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (models.trainable_weights(make(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert models.weights_sha256(first) == models.weights_sha256(same)
    assert models.weights_sha256(first) != models.weights_sha256(other)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_all_of_it_travels_by_the_seam_of_any_model(ema: float) -> None:
    sender, receiver = make(1, ema=ema), make(2, ema=ema)
    weights = models.trainable_weights(sender)
    assert set(weights) == set(sender.state_dict())
    models.load_trainable_weights(receiver, weights)
    labels = torch.tensor([0, 1])
    images = [gan.images(labels, torch.Generator().manual_seed(3)) for gan in (sender, receiver)]
    assert torch.equal(*images)
    assert models.frozen_sha256(sender) == models.frozen_sha256(receiver)


def test_images_come_from_the_average_where_there_is_one() -> None:
    gan = make(ema=0.9)
    assert gan.average is not None
    labels = torch.tensor([0, 1])
    before = gan.images(labels, torch.Generator().manual_seed(3))
    nn.init.zeros_(next(gan.generator.parameters()))
    assert torch.equal(gan.images(labels, torch.Generator().manual_seed(3)), before)
    nn.init.zeros_(next(gan.average.parameters()))
    assert not torch.equal(gan.images(labels, torch.Generator().manual_seed(3)), before)


@pytest.mark.parametrize(("size", "classes"), [(32, 1), (48, 2)])
def test_what_cannot_be_built_is_refused(size: int, classes: int) -> None:
    with pytest.raises(UsageError):
        build(SMALL, image_size=size, num_classes=classes, seed=0)
