"""Training on synthetic images alone: no patient is in reach, nothing is noised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from client import devices
from client.data.augmentation import Augmentation
from client.data.cohort import Cohort
from client.dp.gradients import PlainStep
from client.dp.patients import PatientBatch
from client.frozen import FrozenBackbone
from common.config import AugmentationConfig, Precision
from common.errors import UsageError
from common.files import write_atomically

_METADATA = "fedward.pretraining"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """How long, and how."""

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    augmentation: AugmentationConfig
    precision: Precision = Precision.fp32


def pretrain(
    model: nn.Module,
    pool: Cohort,
    how: Pretraining,
    *,
    state: Path,
    observe: Callable[[int], None],
    cache: Path | None = None,
) -> None:
    """Train the trainable weights of ``model`` in place, by Adam over shuffled batches.

    A backbone that is frozen, below the last layer, is asked once for each image.

    Args:
        model: whose logits fit the pool's labels.
        pool: synthetic images.
        how: epochs, batches and so on.
        state: file that is written after each epoch, and from which a stopped training goes on
            with the same result.
        observe: told after each epoch how many are done.
        cache: folder for what a frozen backbone says of images.

    Raises:
        UsageError: if ``state`` is there and is not of this training.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(named.values(), lr=how.learning_rate, fused=True)
    done = _resume(state, named, optimizer)
    trained, shown = _on_features(model, pool, how, cache)
    trained.train()
    device = devices.of(trained)
    for epoch in range(done, how.epochs):
        rng = np.random.default_rng((how.seed, epoch))
        with devices.drawing(device, int(rng.integers(2**63))):  # dropout and the like
            for batch in _batches(shown, how, rng, device):
                step = PlainStep(
                    trained,
                    optimizer,
                    expected_patients=batch.num_patients,
                    precision=how.precision,
                )
                step.step([batch])
        write_atomically(state, _saved(epoch + 1, named, optimizer))
        observe(epoch + 1)


def _on_features(
    model: nn.Module, pool: Cohort, how: Pretraining, cache: Path | None
) -> tuple[nn.Module, Cohort]:
    """The last layer and what it gets of each image, where that never changes."""
    as_it_is = how.augmentation == AugmentationConfig() and how.precision is Precision.fp32
    backbone = FrozenBackbone.of(model, pool.images.shape[1:]) if as_it_is else None
    if backbone is None:
        return model, pool
    features = backbone.features(pool.images, cache, devices.of(model))
    return backbone.head, replace(pool, images=features)


def _batches(
    pool: Cohort, how: Pretraining, rng: np.random.Generator, device: torch.device
) -> Iterator[PatientBatch]:
    generator = devices.generator_on(device, int(rng.integers(2**63)))
    change = Augmentation(config=how.augmentation)
    order = rng.permutation(len(pool.labels))
    for start in range(0, len(order), how.batch_size):
        rows = order[start : start + how.batch_size]
        batch = PatientBatch(
            images=torch.from_numpy(np.ascontiguousarray(pool.images[rows])),
            labels=torch.from_numpy(pool.labels[rows]),
            patients=torch.arange(len(rows)),
            num_patients=len(rows),
        ).to(device)
        is_image = batch.images.ndim > 3
        images = change.views(batch.images, 1, generator) * 2.0 - 1.0 if is_image else batch.images
        yield replace(batch, images=images)


def _saved(epoch: int, named: dict[str, nn.Parameter], optimizer: torch.optim.Adam) -> bytes:
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        tensors[f"weight/{name}"] = parameter.detach()
        moments = cast("dict[str, Tensor]", optimizer.state[parameter])
        tensors |= {f"{moment}/{name}": moments[moment] for moment in _MOMENTS}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return save(contiguous, metadata={_METADATA: json.dumps({"epoch": epoch})})


def _resume(state: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.Adam) -> int:
    if not state.exists():
        return 0
    try:
        with cast("Any", safe_open(str(state), framework="pt")) as file:
            epoch = int(json.loads(file.metadata()[_METADATA])["epoch"])
            for name, parameter in named.items():
                with torch.no_grad():
                    parameter.copy_(file.get_tensor(f"weight/{name}"))
                optimizer.state[parameter] = {
                    moment: file.get_tensor(f"{moment}/{name}").to(parameter.device)
                    for moment in _MOMENTS
                }
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{state}: not the state of this pretraining ({text})") from error
    return epoch
