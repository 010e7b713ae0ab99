"""The self-check: refuses what an engine gets wrong before a patient is touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.dp import engines
from client.dp.check import check_engine, made_up_batch
from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine, Sums
from client.dp.patients import PatientBatch
from common.config import EngineName
from common.errors import UsageError


def made_up(shape: tuple[int, ...] = (1, 8, 8), *, one_image_each: bool = False) -> PatientBatch:
    return made_up_batch(shape, num_outputs=2, multilabel=False, one_image_each=one_image_each)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(images.flatten(1))))


class MixesImages(TwoLayers):
    """Covered operations, but one image sees the other: no per-patient gradient exists."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(images.flatten(1)))
        return self.head(hidden - hidden.mean(0))


class BatchStatistics(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1))
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 0.1).sqrt()
        return self.head(torch.tanh(hidden))


class MixesInTraining(TwoLayers):
    """Without weights of its own, and harmless in eval: the batch norm that nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.BatchNorm1d(8, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.first(images.flatten(1)))))


class AttendsToOthers(TwoLayers):
    """Attention over images instead of positions, no weight in it."""

    def forward(self, images: Tensor) -> Tensor:
        rows = self.first(images.flatten(1)).unsqueeze(0)
        return self.head(functional.scaled_dot_product_attention(rows, rows, rows)[0])


class Reversed(TwoLayers):
    """Images of the batch change places below the head."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(images.flatten(1))).flip(0)).flip(0)


class PositionsFirst(TwoLayers):
    """The batch is not the first dimension: positions would be taken for images."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.view(len(images), 1, -1).transpose(0, 1).expand(3, -1, -1)
        share = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
        return self.head(torch.tanh(self.first(rows)) * share).sum(0)


class WindowsFirst(TwoLayers):
    """Windows are folded into the batch with the images innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 8)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.view(len(images), 2, 32).transpose(0, 1).reshape(-1, 32)
        return self.head(torch.tanh(self.first(rows)).view(2, len(images), 8).sum(0))


class HiddenFromTheEngine(TwoLayers):
    """A second name for a weight, kept where the engine does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = [self.first.weight]

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.linear(images.flatten(1), self.aside[0], self.first.bias)
        return self.head(torch.tanh(hidden))


WRONG = [
    MixesImages,
    BatchStatistics,
    MixesInTraining,
    AttendsToOthers,
    Reversed,
    PositionsFirst,
    WindowsFirst,
    HiddenFromTheEngine,
]


@pytest.mark.parametrize("kind", WRONG)
def test_what_the_engine_gets_wrong_is_refused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    with pytest.raises(UsageError, match="does not cover"):
        check_engine(model, BookkeepingEngine(model), made_up())


def test_a_recurrent_layer_is_refused_by_name() -> None:
    """Its weights are called from a list of its own."""
    torch.manual_seed(0)
    layer = nn.LSTM(8, 4, batch_first=True)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            self.head = nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.layer(images[:, 0])[0].mean(1))

    model = Recurrent()
    with pytest.raises(UsageError, match=r"does not cover layer\.weight"):
        check_engine(model, BookkeepingEngine(model), made_up())


def test_a_model_that_cannot_take_the_pass_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 2))
    with pytest.raises((UsageError, RuntimeError)):
        check_engine(model, BookkeepingEngine(model), made_up())


class Faulty:
    """The book-keeping engine with a planted fault."""

    def __init__(self, model: nn.Module, fault: str) -> None:
        self.engine = BookkeepingEngine(model)
        self.fault = fault

    def clipped_sums(self, batch: PatientBatch, clipping: Clipping) -> Sums:
        everyone = torch.arange(batch.num_patients)
        match self.fault:
            case "twice":
                first = self.engine.clipped_sums(batch.only(everyone == 0), clipping)
                extra = dict(first)
                return [(p, g + extra[p]) for p, g in self.engine.clipped_sums(batch, clipping)]
            case "after the sum":
                merged = PatientBatch(
                    images=batch.images,
                    labels=batch.labels,
                    patients=torch.zeros_like(batch.patients),
                    num_patients=1,
                )
                return self.engine.clipped_sums(merged, clipping)
            case "by image":
                alone = PatientBatch(
                    images=batch.images,
                    labels=batch.labels,
                    patients=torch.arange(len(batch.labels)),
                    num_patients=len(batch.labels),
                )
                return self.engine.clipped_sums(alone, clipping)
            case "loose":
                bound = 1.01 * clipping.max_grad_norm
                return self.engine.clipped_sums(batch, Clipping(kind="flat", max_grad_norm=bound))
            case "left out":
                return list(_but_last(self.engine.clipped_sums(batch, clipping)))
            case _:
                return self.engine.clipped_sums(batch, clipping)


def _but_last(sums: Sums) -> Iterable[Any]:
    return list(sums)[:-1]


@pytest.mark.parametrize("fault", ["twice", "after the sum", "by image", "loose", "left out"])
def test_planted_faults_are_refused(fault: str) -> None:
    torch.manual_seed(0)
    model = TwoLayers()
    check_engine(model, Faulty(model, "none"), made_up())
    with pytest.raises(UsageError, match="differs from autograd's"):
        check_engine(model, Faulty(model, fault), made_up())


@pytest.mark.parametrize("name", EngineName)
def test_every_engine_passes_on_a_model_that_it_covers(name: EngineName) -> None:
    torch.manual_seed(0)
    model = TwoLayers()
    batch = made_up(one_image_each=name is EngineName.opacus_ghost)
    engine = engines.build(name, model)
    for _ in range(2):  # and leaves the engine as it was
        check_engine(model, engine, batch)


def test_the_check_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        embed_dim=24,
        depth=1,
        num_heads=3,
        in_chans=1,
        num_classes=2,
        drop_rate=0.5,
        drop_path_rate=0.5,
    )
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_engine(model, BookkeepingEngine(model), made_up((1, 16, 16)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("one_image_each", [False, True])
@pytest.mark.parametrize(
    ("num_outputs", "multilabel"), [(2, False), (5, False), (1, True), (4, True)]
)
def test_made_up_patients_suit_the_task(
    num_outputs: int, multilabel: bool, one_image_each: bool
) -> None:
    batch = made_up_batch(
        (1, 8, 8), num_outputs=num_outputs, multilabel=multilabel, one_image_each=one_image_each
    )
    assert batch.num_patients == 2
    assert torch.bincount(batch.patients).tolist() == ([1, 1] if one_image_each else [2, 3])
    assert [part.num_patients for part in batch.alike()] == [2]  # else nothing could be mixed up
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs))
    check_engine(model, BookkeepingEngine(model), batch)
