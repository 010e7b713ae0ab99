"""Our engine's steps against those of Opacus itself, where Opacus covers the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from client.dp import engines
from client.dp.check import check_engine
from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine, Engine
from client.dp.gradients import PatientOptimizer, PrivateStep
from client.dp.opacus_engine import OpacusEngine
from client.dp.patients import PatientBatch, Patients
from common.config import EngineName, Precision
from common.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap

EXPECTED, RATE = 2.5, 0.1
REFERENCES = [EngineName.opacus_hooks, EngineName.opacus_functorch, EngineName.opacus_ghost]


def _timm(name: str, size: int, **options: Any) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    def build() -> tuple[nn.Module, tuple[int, ...]]:
        model = timm.create_model(name, in_chans=1, num_classes=2, **options)
        return model, (1, size, size)

    return build


def _conditional() -> tuple[nn.Module, tuple[int, ...]]:
    """Every kind of layer of the papers' discriminator; the class is the first pixel."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Sequential(nn.Embedding(2, 50), nn.Linear(50, 16**2))
            self.body = nn.Sequential(
                nn.Conv2d(2, 6, 6, stride=2, padding=2),
                nn.LeakyReLU(0.1),
                nn.Conv2d(6, 8, 6, stride=2, padding=2, bias=False),
                nn.InstanceNorm2d(8),
                nn.LeakyReLU(0.1),
                nn.Conv2d(8, 2, 4, bias=False),
            )

        def forward(self, images: Tensor) -> Tensor:
            plane = self.embed((images[:, 0, 0, 0] > 0).long()).view(-1, 1, 16, 16)
            return self.body(torch.cat([images, plane], 1)).flatten(1)

    return Net(), (1, 16, 16)


def _volumes() -> tuple[nn.Module, tuple[int, ...]]:
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.ConvTranspose3d(4, 3, 2, stride=2),
        nn.Flatten(),
        nn.Linear(3 * 4 * 6 * 6, 2),
    )
    return model, (1, 6, 8, 8)


COVERED: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "vit_tiny": _timm("vit_tiny_patch16_224", 16, img_size=16, patch_size=8),
    "deit_tiny_distilled": _timm("deit_tiny_distilled_patch16_224", 32, img_size=32),
    "vit_small_dinov2": _timm("vit_small_patch14_dinov2", 28, img_size=28),
    "discriminator": _conditional,
    "3d": _volumes,
}


@pytest.mark.parametrize("kind", COVERED)
def test_a_step_is_the_step_of_opacus_itself(make_batch: Any, stirred: Any, kind: str) -> None:
    torch.manual_seed(0)
    model, shape = COVERED[kind]()
    batch = make_batch([1, 1, 1], shape)
    start = {k: v.clone() for k, v in stirred(model, 0.02).state_dict().items()}
    hooked = GradSampleModule(model, batch_first=True, loss_reduction="mean")
    functional.cross_entropy(hooked(batch.images), batch.labels).backward()
    norms = [p.grad_sample.flatten(1).norm(dim=1) for p in model.parameters()]
    clip = float(torch.stack(norms).norm(dim=0).median())  # some are clipped, some are not
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=RATE),
        noise_multiplier=0.3,
        max_grad_norm=clip,
        expected_batch_size=EXPECTED,  # pyright: ignore[reportArgumentType]
        generator=torch.Generator().manual_seed(7),
    )
    optimizer.step()
    hooked.to_standard_module()
    want = {name: (value - start[name]).clone() for name, value in model.state_dict().items()}
    model.load_state_dict(start)
    _step(model, BookkeepingEngine(model), batch, clip=clip, sigma=0.3)
    whole = float(torch.cat([value.flatten() for value in want.values()]).norm())
    assert whole > 0
    for name, value in model.state_dict().items():
        off = float((value - start[name] - want[name]).norm())
        assert off <= 1e-4 * max(float(want[name].norm()), 1e-2 * whole), name


def _step(
    model: nn.Module, engine: Engine, batch: PatientBatch, *, clip: float, sigma: float
) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    optimizer = PatientOptimizer(
        torch.optim.SGD(model.parameters(), lr=RATE),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=EXPECTED,  # pyright: ignore[reportArgumentType]
        generator=torch.Generator().manual_seed(7),
    )
    PrivateStep(engine, Clipping(kind="flat", max_grad_norm=clip), optimizer).step([batch])


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Flatten(),
        nn.LayerNorm(36),
        nn.Linear(36, 2),
    )


def sums_of(name: EngineName, batch: Patients, kind: str, clip: float) -> list[Tensor]:
    model = small_net()
    engine = engines.build(name, model)
    sums = dict(engine.clipped_sums(batch, Clipping(kind=kind, max_grad_norm=clip)))
    again = dict(engine.clipped_sums(batch, Clipping(kind=kind, max_grad_norm=clip)))
    assert all(torch.equal(again[p], sums[p]) for p in model.parameters())
    return [sums[parameter] for parameter in model.parameters()]


@pytest.mark.parametrize("kind", ["flat", "automatic"])
@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [1], [2, 3, 1]], ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_references_give_our_sums(
    oracle: Any, make_batch: Any, name: EngineName, counts: list[int], kind: str
) -> None:
    batch = make_batch(counts)
    clip = float(oracle.norms(small_net(), batch).median())
    ours = sums_of(EngineName.bookkeeping, batch, kind, clip)
    if name is EngineName.opacus_ghost and max(counts) > 1:
        with pytest.raises(UsageError, match="one image of each patient"):
            sums_of(name, batch, kind, clip)
        return
    for got, want in zip(sums_of(name, batch, kind, clip), ours, strict=True):
        assert float((got - want).norm()) <= 1e-4 * max(float(want.norm()), 1e-3 * clip)


@pytest.mark.parametrize("layer", [0, 5])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_pass_that_runs_out_of_memory_leaves_nothing_to_the_next(
    make_batch: Any, name: EngineName, backward: bool, layer: int
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError

    model, batch, clipping = (
        small_net(),
        make_batch([1] * 4),
        Clipping(kind="flat", max_grad_norm=1),
    )
    engine = engines.build(name, model)
    want = dict(engine.clipped_sums(batch, clipping))
    failing = model[layer]
    handle = (
        failing.register_full_backward_hook(refuse)
        if backward
        else failing.register_forward_hook(refuse)
    )
    with pytest.raises(torch.OutOfMemoryError):
        engine.clipped_sums(batch, clipping)
    handle.remove()
    for again in (batch, batch.only(torch.tensor([True] * 4))):
        got = dict(engine.clipped_sums(again, clipping))
        assert all(torch.equal(got[p], want[p]) for p in model.parameters())
    functional.cross_entropy(model(batch.images), batch.labels).backward()  # nobody follows


@pytest.mark.parametrize("kind", ["flat", "automatic"])
@pytest.mark.parametrize("name", REFERENCES)
def test_references_take_a_patient_in_pieces_or_refuse(
    oracle: Any, make_batch: Any, in_pieces: Any, name: EngineName, kind: str
) -> None:
    batch = make_batch([5])
    clip = 0.5 * float(oracle.norms(small_net(), batch))
    if name is EngineName.opacus_ghost:
        with pytest.raises(UsageError, match="one image of each patient"):
            sums_of(name, in_pieces(batch, 2), kind, clip)
        return
    whole = sums_of(name, batch, kind, clip)
    for got, want in zip(sums_of(name, in_pieces(batch, 2), kind, clip), whole, strict=True):
        assert float((got - want).norm()) <= 1e-4 * max(float(want.norm()), 1e-3 * clip)
    with pytest.raises(UsageError, match="per_layer"):
        sums_of(name, in_pieces(batch, 2), "per_layer", clip)


@pytest.mark.parametrize("name", REFERENCES)
def test_references_count_a_patient_that_is_not_finite_as_zero(
    make_batch: Any, name: EngineName
) -> None:
    batch = make_batch([1, 1, 1])
    healthy = batch.only(torch.tensor([True, False, True]))
    batch.images[1].fill_(float("nan"))
    want = sums_of(EngineName.bookkeeping, healthy, "flat", 0.5)
    for got, value in zip(sums_of(name, batch, "flat", 0.5), want, strict=True):
        assert float((got - value).norm()) <= 1e-4 * max(float(value.norm()), 1e-3)


@pytest.mark.parametrize("name", REFERENCES)
def test_references_refuse_what_they_do_not_do(make_batch: Any, name: EngineName) -> None:
    with pytest.raises(UsageError, match=r"per_layer|privacy\.clipping=flat"):
        sums_of(name, make_batch([1, 1]), "per_layer", 1.0)
    with pytest.raises(UsageError, match="precision bf16 needs the book-keeping engine"):
        engines.build(name, small_net(), Precision.bf16)


@contextmanager
def _refused() -> Iterator[None]:
    with pytest.raises(UsageError, match=r"does not cover|does not give a gradient by image"):
        yield


@pytest.mark.parametrize("name", [EngineName.opacus_hooks, EngineName.opacus_functorch])
def test_opacus_on_a_swin_is_refused_and_ours_is_not(make_batch: Any, name: EngineName) -> None:
    """Where trainable layers have buffers, or windows stand in the batch."""
    build = _timm(
        "swin_tiny_patch4_window7_224",
        32,
        img_size=32,
        window_size=4,
        patch_size=2,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(2, 2),
    )
    batch = make_batch([1, 1], (1, 32, 32))
    for trained in ("", ".qkv."):
        model, _ = build()
        for weight, parameter in model.named_parameters():
            parameter.requires_grad_(trained in weight)
        check_engine(model, BookkeepingEngine(model), batch)
        with _refused():
            check_engine(model, engines.build(name, model), batch)


def test_opacus_on_a_convnext_is_refused_and_ours_is_not(make_batch: Any) -> None:
    """Its convolutions are silently wrong on inputs in channels_last."""
    torch.manual_seed(0)
    model = timm.create_model(
        "convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), in_chans=1, num_classes=2
    )
    batch = make_batch([1, 1], (1, 64, 64))
    check_engine(model, BookkeepingEngine(model), batch)
    with _refused():
        check_engine(model, OpacusEngine(model, functorch=False), batch)


@pytest.mark.parametrize("name", REFERENCES)
def test_physical_batches_add_up(make_batch: Any, name: EngineName) -> None:
    """Nothing of a sum is touched by the next pass."""
    parts = [make_batch([1, 1], seed=seed) for seed in range(3)]
    updates: list[Tensor] = []
    for engine_name in (name, EngineName.bookkeeping):
        model = small_net()
        engine = engines.build(engine_name, model)
        optimizer = PatientOptimizer(
            torch.optim.SGD(model.parameters(), lr=RATE),
            noise_multiplier=0.0,
            max_grad_norm=0.1,
            expected_batch_size=EXPECTED,  # pyright: ignore[reportArgumentType]
        )
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        PrivateStep(engine, Clipping(kind="flat", max_grad_norm=0.1), optimizer).step(parts)
        updates.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert float((updates[0] - updates[1]).norm()) <= 1e-4 * float(updates[1].norm())
