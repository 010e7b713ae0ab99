"""Whole models under the book-keeper, against one backward pass for each patient."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from client.dp.bookkeeping import Bookkeeper
from client.dp.loss import patient_loss
from common import models
from common.config import FinetuneConfig, ModelConfig
from common.errors import UsageError

COUNTS = st.lists(st.integers(1, 3), min_size=1, max_size=4)
FEW = settings(max_examples=8, deadline=None)

# side of the images, and options of timm that keep the pass short
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (32, {"img_size": 32, "patch_size": 8}),
    "deit_tiny_distilled_patch16_224": (32, {"img_size": 32, "patch_size": 16}),
    "vit_small_patch14_dinov2": (28, {"img_size": 28}),
    "vit_small_patch14_reg4_dinov2": (28, {"img_size": 28, "depth": 2}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "window_size": 7}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "window_size": 4}),
    "convnext_tiny": (32, {}),
}


def build_timm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    size, options = TIMM[name]
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=1, num_classes=2, **options)
    return model, (1, size, size)


def tiny_vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=16,
        embed_dim=24,
        depth=2,
        num_heads=3,
        in_chans=1,
        num_classes=2,
        **options,
    )


class Discriminator(nn.Module):
    """The malignancy-conditioned discriminator of Osuala et al. 2024, narrower and for 32 px.

    The class of an image comes in as its first pixel.
    """

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Sequential(
            nn.Embedding(2, 50), nn.Linear(50, size * size), nn.LeakyReLU(0.1)
        )
        widths = [2, 6, 8, 10]
        self.body = nn.Sequential()
        for index, (below, above) in enumerate(itertools.pairwise(widths)):
            self.body.append(nn.Conv2d(below, above, 6, stride=2, padding=2, bias=index == 0))
            if index:
                self.body.append(nn.InstanceNorm2d(above))
            self.body.append(nn.LeakyReLU(0.1))
        self.top = nn.Conv2d(10, 2, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        condition = self.embed((images[:, 0, 0, 0] > 0).long())
        planes = torch.cat([images, condition.view(-1, 1, self.size, self.size)], 1)
        return self.top(self.body(planes)).flatten(1)


def small_3d_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Conv3d(4, 6, 3, stride=2, groups=2),
        nn.GroupNorm(3, 6),
        nn.SiLU(),
        nn.ConvTranspose3d(6, 4, 2, stride=2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


@pytest.mark.parametrize("counts", [[1, 3, 2], [1, 1]], ids=str)
@pytest.mark.parametrize("name", TIMM)
def test_timm_models(oracle: Any, make_batch: Any, stirred: Any, name: str, counts: list[int]):
    model, shape = build_timm(name)
    oracle.assert_recorded(stirred(model.eval(), 0.02), make_batch(counts, shape))


@FEW
@given(counts=COUNTS, seed=st.integers(0, 99))
@example(counts=[1, 3, 2, 1], seed=17)
def test_the_papers_discriminator(
    oracle: Any, make_batch: Any, counts: list[int], seed: int
) -> None:
    """In 64 bits: in 32 a leaky ReLU's slope at a sum near 0 depends on how a batch is rounded."""
    torch.manual_seed(seed)
    model = Discriminator().double()
    batch = make_batch(counts, (1, 32, 32), seed=seed, dtype=torch.float64)
    oracle.assert_recorded(model, batch)


def test_the_papers_discriminator_in_32_bits(oracle: Any, make_batch: Any) -> None:
    torch.manual_seed(0)
    oracle.assert_recorded(Discriminator(), make_batch([1, 3, 2], (1, 32, 32)))


@FEW
@given(counts=COUNTS, seed=st.integers(0, 99))
def test_a_3d_network(oracle: Any, make_batch: Any, counts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    batch = make_batch(counts, (1, 6, 8, 8), seed=seed, dtype=torch.float64)
    oracle.assert_recorded(small_3d_network().double(), batch)


@FEW
@given(counts=COUNTS, seed=st.integers(0, 99))
def test_vision_transformer_with_registers_and_layer_scale(
    oracle: Any, make_batch: Any, stirred: Any, counts: list[int], seed: int
) -> None:
    model = stirred(tiny_vit(init_values=0.5, reg_tokens=2))
    oracle.assert_recorded(model, make_batch(counts, (1, 32, 32), seed=seed))


@pytest.mark.parametrize("name", TIMM)
def test_models_whose_backbone_is_partly_frozen(
    oracle: Any, make_batch: Any, stirred: Any, name: str
) -> None:
    """BitFit: biases alone, and the head; on every model's own ways to use a bias."""
    model, shape = build_timm(name)
    for weight, parameter in stirred(model.eval(), 0.02).named_parameters():
        parameter.requires_grad_(weight.endswith("bias") or weight.startswith("head"))
    oracle.assert_recorded(model, make_batch([2, 1], shape))


class OnlySomeBlocks(nn.Module):
    """Frozen below, trained above; keeps watch on what the backward pass and memory do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.frozen = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.trained = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        for module in (self.stem, self.frozen, self.norm, self.after):
            module.requires_grad_(False)
        self.seen: dict[str, Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = self.norm(torch.tanh(self.frozen(x)))
        self.seen["below the trained"] = x.requires_grad
        x = torch.tanh(self.trained(x))
        into_frozen = x * 1.0
        self.seen["into the frozen"] = weakref.ref(into_frozen)
        x = self.after(into_frozen).mean(1)
        del into_frozen
        self.seen["freed"] = self.seen["into the frozen"]() is None
        return self.head(x)


def test_nothing_is_kept_for_frozen_weights_and_no_backward_pass_goes_below_them(
    oracle: Any, make_batch: Any
) -> None:
    model, batch = OnlySomeBlocks(), make_batch([2, 1])
    oracle.assert_recorded(model, batch)
    with Bookkeeper(model).recording(batch) as recording:
        loss = patient_loss(model, batch)
        assert model.seen == {
            "below the trained": False,
            "into the frozen": model.seen["into the frozen"],
            "freed": True,
        }
        loss.backward()
    trained = {*model.trained.parameters(), *model.head.parameters()}
    assert set(recording.tapes) == trained
    # nor does a bias need its layer's input
    model.after.bias.requires_grad_(True)
    with Bookkeeper(model).recording(batch):
        patient_loss(model, batch).backward()
    assert model.seen["freed"]
    # and the watch can tell: with all trained, gradients go below and inputs are kept
    model.requires_grad_(True)
    with Bookkeeper(model).recording(batch):
        patient_loss(model, batch).backward()
    assert model.seen["below the trained"]
    assert not model.seen["freed"]


def test_a_frozen_transformer_keeps_its_heads_tapes_alone(make_batch: Any) -> None:
    model = tiny_vit().requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    below: list[bool] = []
    model.norm.register_forward_hook(lambda module, given, out: below.append(out.requires_grad))
    batch = make_batch([2, 3], (1, 32, 32))
    with Bookkeeper(model).recording(batch) as recording:
        patient_loss(model, batch).backward()
    assert set(recording.tapes) == set(model.get_classifier().parameters())
    assert below == [False]
    kept = sum(tape.num_bytes for tape in recording.tapes.values())
    assert kept <= 2 * 4 * (2 * 24 + 2) * 3  # a gradient of each patient, or its factors


class Twice(nn.Module):
    """One layer of each kind used twice, with different numbers of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.mix = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.token = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(torch.tanh(self.conv(images))).squeeze(1)
        hidden = self.norm(torch.tanh(self.mix(maps))) * self.token
        return self.head(self.norm(self.mix(hidden[:, :3]) + self.token).mean(1))


@FEW
@given(counts=COUNTS)
def test_layers_used_twice(oracle: Any, make_batch: Any, counts: list[int]) -> None:
    torch.manual_seed(1)
    oracle.assert_recorded(Twice(), make_batch(counts))


def test_a_weight_owned_by_two_modules(oracle: Any, make_batch: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    model.append(nn.Linear(64, 2))
    model[3].weight = model[1].weight
    assert len([p for p in model.parameters() if p is model[1].weight]) == 1
    oracle.assert_recorded(model, make_batch([1, 2, 1]))


class InTwoWays(nn.Module):
    """A table that is looked up and multiplied with, as tied embeddings are."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.shared(images.flatten(1, 2))
        match self.way:
            case "looked up":
                index = (images[:, 0, 0] > 0).long()
                rows = rows + functional.embedding(index, self.shared.weight)
            case "added":
                rows = rows + self.shared.weight
            case _:
                rows = rows * self.shared.bias
        return self.head(torch.tanh(rows).mean(1))


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("looked up", "shared.weight"),
        ("added", "shared.weight"),
        ("bias", "shared.bias"),
    ],
)
def test_a_weight_used_in_two_ways_is_refused_by_name(
    make_batch: Any, way: str, name: str, per_layer: bool
) -> None:
    model, batch = InTwoWays(way), make_batch([2, 1])

    def forget(tapes: object) -> None:
        del tapes

    with (
        pytest.raises(UsageError, match=f"does not cover {name}: it is used in two ways"),
        Bookkeeper(model).recording(batch, forget if per_layer else None),
    ):
        patient_loss(model, batch).backward()


class Refusable(nn.Module):
    """Something around a weight that the engine must not guess about."""

    def __init__(self, build: Callable[[], nn.Module], use: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.part = build()
        self.use = use
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1).unflatten(1, (16, 4))
        return self.head(self.use(self.part, x).mean(1))


def _call(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


def _square() -> nn.Module:
    return nn.Linear(4, 4, bias=False)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], str]] = {
    "matmul": (_square, lambda part, x: x @ part.weight, "part.weight"),
    "matmul of its transpose": (
        _square,
        lambda part, x: torch.matmul(x, part.weight.t()),
        "part.weight",
    ),
    "einsum": (_square, lambda part, x: torch.einsum("btc,cd->btd", x, part.weight), "part.weight"),
    "computed weight": (
        _square,
        lambda part, x: functional.linear(x, part.weight.tanh()),
        "part.weight",
    ),
    "weight as input": (
        _square,
        lambda part, x: x + functional.linear(part.weight, x[0, :4]),
        "part.weight",
    ),
    "power": (_square, lambda part, x: x ** part.weight[0], "part.weight"),
    "where": (_square, lambda part, x: torch.where(x > 0, x, part.weight[0]), "part.weight"),
    "concatenation": (
        _square,
        lambda part, x: torch.cat([part.weight.unsqueeze(0), x.mean(0, keepdim=True)], 1).expand(
            len(x), -1, -1
        ),
        "part.weight",
    ),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), lambda part, x: part(x, x), "part.weight"),
    "prelu": (nn.PReLU, _call, "part.weight"),
    "batch norm": (lambda: nn.BatchNorm1d(16), _call, "part.weight"),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda part, x: part(x, x, x)[0],
        "part.in_proj_weight",
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(_square()),
        _call,
        "part.parametrizations.weight",
    ),
    "renormalised embedding": (
        lambda: nn.Embedding(3, 4, max_norm=1.0),
        lambda part, x: x + part((x[..., 0] > 0).long()),
        "part.weight",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_uses_that_are_not_covered_are_refused_by_name(make_batch: Any, kind: str) -> None:
    build, use, name = REFUSED[kind]
    model, batch = Refusable(build, use), make_batch([2, 1])
    with (
        pytest.raises(UsageError, match=f"does not cover .*{name}"),
        Bookkeeper(model).recording(batch),
    ):
        patient_loss(model, batch).backward()


def test_mobilevit_is_refused_by_its_batch_norms_name() -> None:
    with pytest.raises(UsageError, match=r"mobilevit_s: layer .*\.bn is a BatchNorm"):
        models.build(
            ModelConfig(architecture="mobilevit_s", patch_size=None),
            FinetuneConfig(),
            image_size=64,
            num_classes=2,
            seed=0,
        )


def test_a_plain_pass_after_a_recorded_one_trains_as_ever(make_batch: Any) -> None:
    torch.manual_seed(0)
    model, batch = Twice(), make_batch([2, 1])
    expected = functional.cross_entropy(model(batch.images), batch.labels)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    with Bookkeeper(model).recording(batch):
        patient_loss(model, batch).backward()
    functional.cross_entropy(model(batch.images), batch.labels).backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("counts", [[2], [2, 1]])
def test_weights_are_whole_again_when_a_pass_fails(make_batch: Any, counts: list[int]) -> None:
    model = Twice()
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError), Bookkeeper(model).recording(make_batch(counts)):
        model(torch.zeros(2, 3, 8, 8))
    assert all(p is before[name] for name, p in model.named_parameters())
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 2)


def test_a_recording_costs_no_more_than_it_lives(make_batch: Any) -> None:
    """Tapes of a step are gone with it: a round would otherwise fill the memory."""
    model, batch = Twice(), make_batch([2, 1])

    def record() -> list[weakref.ref[Any]]:
        with Bookkeeper(model).recording(batch) as recording:
            patient_loss(model, batch).backward()
        return [weakref.ref(recording), *map(weakref.ref, recording.tapes.values())]

    assert all(reference() is None for reference in record())


def test_layers_are_counted_by_the_modules_that_own_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2), nn.Linear(2, 2))
    assert Bookkeeper(model).num_layers == 3
    model[0].requires_grad_(False)
    assert Bookkeeper(model).num_layers == 2
    model[3].weight = model[2].weight
    assert Bookkeeper(model).num_layers == 2
