from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.data.cohort import Cohort
from client.synthesis import pretraining as pretraining_module
from client.synthesis.pretraining import Pretraining, pretrain
from common import models
from common.config import AugmentationConfig, FinetuneConfig, FinetuneMode, ModelConfig
from common.errors import UsageError

HOW = Pretraining(
    epochs=4,
    batch_size=8,
    learning_rate=0.01,
    seed=5,
    augmentation=AugmentationConfig(flip_horizontal=True),
)


def pool() -> Cohort:
    """Bright images are of class 1."""
    labels = np.arange(50) % 2
    images = np.random.default_rng(0).random((50, 1, 6, 6), dtype=np.float32) * 0.5
    images[labels == 1] += 0.5
    return Cohort(
        images=images, labels=labels, patients=np.arange(50), num_patients=50, patient_ids=()
    )


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.2), nn.Linear(8, 2))


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_it_learns(tmp_path: Path) -> None:
    network = model()
    epochs: list[int] = []
    how = replace(HOW, epochs=25)
    pretrain(network, pool(), how, state=tmp_path / "s", observe=epochs.append)
    network.eval()
    guesses = network(torch.from_numpy(pool().images * 2 - 1)).argmax(1).numpy()
    assert (guesses == pool().labels).mean() > 0.95
    assert epochs == list(range(1, 26))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_and_gone_on_is_the_same(after: int, tmp_path: Path) -> None:
    whole = model()
    pretrain(whole, pool(), HOW, state=tmp_path / "whole", observe=lambda _: None)

    def stop(epoch: int) -> None:
        if epoch == after:
            raise Stopped

    with pytest.raises(Stopped):
        pretrain(model(), pool(), HOW, state=tmp_path / "part", observe=stop)
    epochs: list[int] = []
    resumed = model()
    pretrain(resumed, pool(), HOW, state=tmp_path / "part", observe=epochs.append)
    assert epochs == list(range(after + 1, 5))
    assert torch.equal(weights(resumed), weights(whole))


def test_frozen_weights_stay(tmp_path: Path) -> None:
    network = model()
    network[1].requires_grad_(False)
    before = network[1].weight.clone()
    pretrain(network, pool(), HOW, state=tmp_path / "s", observe=lambda _: None)
    assert torch.equal(network[1].weight, before)


def test_a_strange_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "s"
    pretrain(model(), pool(), replace(HOW, epochs=1), state=state, observe=lambda _: None)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(UsageError, match="not the state of this pretraining"):
        pretrain(other, pool(), HOW, state=state, observe=lambda _: None)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UsageError, match="not the state of this pretraining"):
        pretrain(model(), pool(), HOW, state=state, observe=lambda _: None)


def test_a_frozen_backbone_is_asked_once_and_the_head_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = replace(HOW, augmentation=AugmentationConfig(), epochs=3)
    images = replace(
        pool(), images=np.random.default_rng(1).random((50, 1, 32, 32), dtype=np.float32)
    )
    asked: list[int] = []

    def trained(name: str, how: Pretraining = how) -> torch.Tensor:
        network = models.build(
            ModelConfig(architecture="test_vit", patch_size=16),
            FinetuneConfig(mode=FinetuneMode.head, center=True),
            image_size=32,
            num_classes=2,
            seed=1,
        )
        network.register_forward_hook(lambda *_: asked.append(1))
        asked.clear()
        pretrain(network, images, how, state=tmp_path / name, observe=lambda _: None)
        return weights(network)

    begun = trained("kept")
    num_asked = len(asked)
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_module.FrozenBackbone, "of", lambda *_: None)
        assert torch.allclose(trained("whole"), begun, atol=1e-4)
    assert num_asked < len(asked) == 3 * 7
    trained("flipped", replace(how, augmentation=AugmentationConfig(flip_horizontal=True)))
    assert len(asked) >= 3 * 7, "images that change have to be asked anew"
