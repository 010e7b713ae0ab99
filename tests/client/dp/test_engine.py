"""Clipped sums: by definition, under attack, in half precision, and where others went wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine
from client.dp.patients import PatientBatch, Patients
from common.config import Precision

KINDS = ["flat", "automatic", "per_layer"]
FEW = settings(max_examples=10, deadline=None)
SOME = settings(max_examples=25, deadline=None)
SHAPE = (1, 16, 16)


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        in_chans=1,
        num_classes=2,
    ).eval()


def tiny_swin(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        patch_size=2,
        embed_dim=12,
        depths=(2, 1),
        num_heads=(2, 2),
        in_chans=1,
        num_classes=2,
        **options,
    ).eval()


def tiny_convnext() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), in_chans=1, num_classes=2
    )
    return model.eval()


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.LayerNorm(196), nn.Linear(196, 2)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"vit": tiny_vit, "net": small_net}


def sums_of(
    model: nn.Module,
    batch: Patients,
    kind: str,
    clip: float,
    precision: Precision = Precision.fp32,
) -> dict[str, Tensor]:
    engine = BookkeepingEngine(model, precision)
    names = {parameter: name for name, parameter in model.named_parameters()}
    sums = list(engine.clipped_sums(batch, Clipping(kind=kind, max_grad_norm=clip)))
    assert len({parameter for parameter, _ in sums}) == len(sums)
    assert not any(gradient.requires_grad for _, gradient in sums)
    return {names[parameter]: gradient for parameter, gradient in sums}


def defined(model: nn.Module, each: list[dict[str, Tensor]], kind: str, clip: float) -> Any:
    """The sum that a kind of clipping stands for, from each patient's gradient."""
    layers = {name: name.rpartition(".")[0] for name in each[0]}
    total: dict[str, Tensor] = {}
    for gradients in each:
        for name, gradient in gradients.items():
            mates = [g for other, g in gradients.items() if layers[other] == layers[name]]
            together = mates if kind == "per_layer" else list(gradients.values())
            norm = float(torch.stack([g.norm() for g in together]).norm())
            bound = clip / len(set(layers.values())) ** 0.5 if kind == "per_layer" else clip
            factor = bound / (norm + 0.01) if kind == "automatic" else min(1.0, bound / norm)
            total[name] = total.get(name, torch.zeros(())) + factor * gradient
    return total


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert got.keys() == want.keys()
    whole = norm_of(want)
    for name, value in want.items():
        scale = max(float(value.norm()), 1e-3 * whole)
        assert float((got[name] - value).norm()) <= tolerance * scale, name


def norm_of(values: dict[str, Tensor]) -> float:
    return float(torch.cat([value.double().flatten() for value in values.values()]).norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", MODELS)
@FEW
@given(counts=st.lists(st.integers(1, 3), min_size=1, max_size=4), share=st.floats(0.3, 3.0))
def test_sums_are_what_the_clipping_says(
    oracle: Any,
    make_batch: Any,
    stirred: Any,
    build: str,
    kind: str,
    counts: list[int],
    share: float,
) -> None:
    model, batch = stirred(MODELS[build]()), make_batch(counts, SHAPE)
    clip = share * float(oracle.norms(model, batch).median())
    each = oracle.gradients(model, batch)
    assert_same(sums_of(model, batch, kind, clip), defined(model, each, kind, clip))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_nobody_adds_nothing(make_batch: Any, kind: str) -> None:
    nobody = make_batch([1, 1], SHAPE).only(torch.tensor([False, False]))
    assert (nobody.num_patients, len(nobody.labels)) == (0, 0)
    for gradient in sums_of(tiny_vit(), nobody, kind, 1.0).values():
        assert not bool(gradient.any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("build", "poison"),
    [
        ("vit", float("nan")),
        ("vit", float("inf")),
        ("vit", 3e38),  # finite, but its sums are not
        ("net", float("nan")),
        ("net", -float("inf")),
    ],
)
def test_a_patient_whose_gradient_is_not_finite_counts_as_zero_and_others_stay(
    make_batch: Any, build: str, poison: float, kind: str
) -> None:
    model, batch = MODELS[build](), make_batch([2, 3, 1], SHAPE)
    healthy = batch.only(torch.tensor([True, False, True]))
    batch.images[3, 0, 4:8, 4:8] = poison  # the second of three images of the second patient
    got = sums_of(model, batch, kind, 0.5)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in got.values())
    assert_same(got, sums_of(model, healthy, kind, 0.5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [[2], [1, 2]], ids=str)
def test_a_batch_of_poisoned_patients_alone_adds_nothing(
    make_batch: Any, kind: str, counts: list[int]
) -> None:
    batch = make_batch(counts, SHAPE)
    batch.images.fill_(float("nan"))
    for gradient in sums_of(small_net(), batch, kind, 0.5).values():
        assert not bool(gradient.any())


def alone_in_two(
    model: nn.Module,
    batch: PatientBatch,
    kind: str,
    clip: float,
    precision: Precision = Precision.fp32,
) -> float:
    """Length of what the only patient of ``batch`` adds, with a second one who adds nothing."""
    return norm_of(sums_of(model, with_nobody(batch), kind, clip, precision))


def with_nobody(batch: PatientBatch) -> PatientBatch:
    """The only patient of ``batch``, and a second one who adds nothing."""
    nobody = torch.full_like(batch.images[:1], float("nan"))
    return PatientBatch(
        images=torch.cat([batch.images, nobody]),
        labels=torch.cat([batch.labels, batch.labels[:1]]),
        patients=torch.cat([batch.patients, torch.ones(1, dtype=torch.int64)]),
        num_patients=2,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", MODELS)
@SOME
@given(num_images=st.integers(1, 6), exponent=st.floats(-3, 4), seed=st.integers(0, 9))
def test_one_patients_influence_is_at_most_the_clipping_norm(
    make_batch: Any, build: str, kind: str, num_images: int, exponent: float, seed: int
) -> None:
    model, batch = MODELS[build](), make_batch([num_images], SHAPE, seed=seed)
    batch.images.mul_(10**exponent)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 ** (exponent / 4))
    for length in (
        norm_of(sums_of(model, batch, kind, 1.0)),
        alone_in_two(model, batch, kind, 1.0),
    ):
        assert length <= 1.0 + 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layer", "num_images", "shift"),
    [("linear", 2, 1e-4), ("linear", 8, 1e-7), ("norm", 8, 1e-7)],
)
def test_images_that_cancel_hide_nothing_from_the_clipping(
    kind: str, layer: str, num_images: int, shift: float
) -> None:
    """Weights of the server's choice and nearly equal images with unequal labels.

    Each image's gradient is huge, their mean is small beside it, and what rounding leaves of the
    norm could be zero, while the gradient is thousands of times the clipping norm.
    """
    for seed in range(15):
        torch.manual_seed(seed)
        part = {"linear": nn.Linear(256, 200), "norm": nn.LayerNorm(256)}[layer]
        head = nn.Linear(200 if layer == "linear" else 256, 2)
        model = nn.Sequential(nn.Flatten(), part, head)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.zero_()
            head.bias.zero_()
            head.weight *= 1e7 if num_images == 2 else 1e8
        head.requires_grad_(False)
        image = torch.rand(1, *SHAPE) * 2 - 1
        batch = PatientBatch(
            images=image + shift * torch.randn(num_images, *SHAPE),
            labels=torch.arange(num_images) % 2,
            patients=torch.zeros(num_images, dtype=torch.int64),
            num_patients=1,
        )
        assert norm_of(sums_of(model, batch, kind, 1.0)) <= 1.0 + 1e-4
        assert alone_in_two(model, batch, kind, 1.0) <= 1.0 + 1e-4


@pytest.mark.parametrize("kind", ["flat", "per_layer"])
@pytest.mark.parametrize(
    "build", [tiny_vit, tiny_swin, tiny_convnext, small_net], ids=lambda build: build.__name__
)
def test_half_precision_norms_are_those_of_what_is_summed(
    make_batch: Any, stirred: Any, build: Callable[[], nn.Module], kind: str
) -> None:
    """Opacus exceeds the bound by 0.04 % with hooks and by 0.24 % with ghost clipping."""
    size = 32 if build in (tiny_swin, tiny_convnext) else 16
    for seed, counts in enumerate(([1], [3])):
        model, batch = stirred(build()), make_batch(counts, (1, size, size), seed=seed)
        clip = 1e-3
        length = alone_in_two(model, batch, kind, clip, Precision.bf16)
        assert length <= clip * (1 + 1e-4)
        if kind == "flat":  # and the whole bound is used
            assert length >= clip * (1 - 2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_sums_are_in_full_and_near_the_truth(make_batch: Any, kind: str) -> None:
    model, batch = tiny_vit(), make_batch([1, 3, 2], SHAPE)
    seen: set[torch.dtype] = set()
    model.blocks[0].mlp.fc1.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    half = sums_of(model, batch, kind, 0.5, Precision.bf16)
    assert seen == {torch.bfloat16}
    assert {gradient.dtype for gradient in half.values()} == {torch.float32}
    full = sums_of(model, batch, kind, 0.5)
    off = norm_of({name: half[name] - full[name] for name in full}) / norm_of(full)
    assert 1e-5 < off < 0.05


@pytest.mark.parametrize("build", [tiny_convnext, small_net], ids=lambda build: build.__name__)
@pytest.mark.parametrize("of_model", [False, True])
def test_channels_last_changes_nothing(
    oracle: Any, make_batch: Any, build: Callable[[], nn.Module], of_model: bool
) -> None:
    """Opacus's convolutions are silently wrong by 100 % and more here."""
    shape = (1, 32, 32) if build is tiny_convnext else SHAPE
    batch = make_batch([1, 2, 2], shape)
    want = oracle.clipped_sum(build(), batch, 0.5)
    last = PatientBatch(
        images=batch.images.to(memory_format=torch.channels_last),
        labels=batch.labels,
        patients=batch.patients,
        num_patients=3,
    )
    model = build().to(memory_format=torch.channels_last) if of_model else build()
    assert_same(sums_of(model, last, "flat", 0.5), want)


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_last_inside_convolutions_with_many_channels(
    oracle: Any, make_batch: Any, channels: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 200, 5),
        nn.ConvTranspose2d(200, 3, 2),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    batch = make_batch([1, 2], (channels, 8, 8))
    model(batch.images)
    last = PatientBatch(
        images=batch.images.to(memory_format=torch.channels_last),
        labels=batch.labels,
        patients=batch.patients,
        num_patients=2,
    )
    assert not last.images.is_contiguous()
    oracle.assert_recorded(model.to(memory_format=torch.channels_last), last)


@pytest.mark.parametrize("trained", ["all", "stage 0 qkv and proj", "all but the tables"])
def test_swins_windows_are_not_clipped_one_by_one(
    oracle: Any, make_batch: Any, stirred: Any, trained: str
) -> None:
    """With hooks, two images could add 86 times the bound, and no error said so."""
    model = stirred(tiny_swin())
    for name, parameter in model.named_parameters():
        stage_0 = "layers.0" in name and (".qkv." in name or ".attn.proj." in name)
        chosen = {"all": True, "stage 0 qkv and proj": stage_0}
        parameter.requires_grad_(chosen.get(trained, "table" not in name))
    batch = make_batch([1, 1], (1, 32, 32))
    clip = 0.1 * float(oracle.norms(model, batch).min())
    got = sums_of(model, batch, "flat", clip)
    assert norm_of(got) <= 2 * clip * (1 + 1e-4)
    # the norms are small enough for what keeps the divisor from zero (1e-6) to show
    assert_same(got, oracle.clipped_sum(model, batch, clip), tolerance=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_tokens_in_the_root_module_and_dropout(make_batch: Any, rate: float) -> None:
    """Opacus hooks one functorch module then, and dropout raises."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        in_chans=1,
        num_classes=2,
        drop_rate=rate,
        pos_drop_rate=rate,
        drop_path_rate=rate,
    ).train()
    sums = sums_of(model, make_batch([2, 1], SHAPE), "flat", 1.0)
    assert {"cls_token", "pos_embed"} <= sums.keys()
    assert all(bool(sums[name].any()) for name in ("cls_token", "pos_embed"))
    assert norm_of(sums) <= 2.0 + 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_gets_no_gradient_is_left_out(make_batch: Any, kind: str) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(256, 2)
            self.idle = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.used(images.flatten(1))

    for counts in ([1], [1, 2]):
        sums = sums_of(Unused(), make_batch(counts, SHAPE), kind, 0.5)
        assert set(sums) == {"used.weight", "used.bias"}


def volume_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 2 * 36, 2)
    )


LARGE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (tiny_vit, SHAPE),
    "swin": (tiny_swin, (1, 32, 32)),
    "net": (small_net, SHAPE),
    "volumes": (volume_net, (1, 4, 8, 8)),
}


def whole_sums(
    model: nn.Module, batch: PatientBatch, kind: str, clip: float, *, recorded: bool
) -> dict[str, Tensor]:
    """Of the only patient; recorded by operation if there is a second one, who adds nothing."""
    if recorded:
        batch = with_nobody(batch)
    return sums_of(model, batch, kind, clip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("build", LARGE)
def test_a_patient_in_pieces_adds_what_the_whole_one_adds(
    oracle: Any,
    make_batch: Any,
    in_pieces: Any,
    stirred: Any,
    build: str,
    kind: str,
    recorded: bool,
    multilabel: bool,
) -> None:
    """Pieces of unequal sizes too; clipped, nearly clipped, and not."""
    make, shape = LARGE[build]
    model, batch = stirred(make()), make_batch([7], shape)
    if multilabel:
        findings = torch.arange(14).view(7, 2) % 3 - 1
        findings[:, 0] = torch.arange(7) % 2
        batch = replace(batch, labels=findings)
    norm = float(oracle.norms(model, batch))
    for clip in (0.1 * norm, norm, 10 * norm):
        want = whole_sums(model, batch, kind, clip, recorded=recorded)
        for at_once in (1, 3, 7):
            assert_same(sums_of(model, in_pieces(batch, at_once), kind, clip), want)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_clipped_together_and_not_one_by_one(
    make_batch: Any, in_pieces: Any, kind: str
) -> None:
    model, batch = tiny_vit(), make_batch([9], SHAPE)
    batch.images.mul_(30.0)
    for at_once in (1, 4):
        assert norm_of(sums_of(model, in_pieces(batch, at_once), kind, 1e-3)) <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_in_pieces(make_batch: Any, in_pieces: Any, kind: str) -> None:
    model, batch = tiny_vit(), make_batch([7], SHAPE)
    half = sums_of(model, in_pieces(batch, 2), kind, 1e-3, Precision.bf16)
    assert {gradient.dtype for gradient in half.values()} == {torch.float32}
    assert norm_of(half) <= 1e-3 * (1 + 1e-4)
    whole = sums_of(model, batch, kind, 1e-3, Precision.bf16)
    off = norm_of({name: half[name] - whole[name] for name in whole}) / norm_of(whole)
    assert off < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38])
def test_one_piece_that_is_not_finite_makes_the_patient_count_as_zero(
    make_batch: Any, in_pieces: Any, kind: str, poison: float
) -> None:
    batch = make_batch([5], SHAPE)
    batch.images[2, 0, 4:8, 4:8] = poison
    for gradient in sums_of(tiny_vit(), in_pieces(batch, 1), kind, 0.5).values():
        assert not bool(gradient.any())


def test_an_engine_has_losses_of_its_own_in_pieces_too(make_batch: Any, in_pieces: Any) -> None:
    model, batch = small_net(), make_batch([5], SHAPE)
    names = {parameter: name for name, parameter in model.named_parameters()}
    engine = BookkeepingEngine(model, losses_of=lambda logits, labels: logits[:, 0].square())
    clipping = Clipping(kind="flat", max_grad_norm=1.0)
    whole, pieces = (
        {names[p]: g for p, g in engine.clipped_sums(patient, clipping)}
        for patient in (batch, in_pieces(batch, 2))
    )
    assert_same(pieces, whole)


def test_a_piece_that_fails_leaves_the_model_as_it_was(make_batch: Any, in_pieces: Any) -> None:
    model, batch = small_net(), make_batch([4], SHAPE)
    want = sums_of(model, batch, "flat", 0.5)
    before = dict(model.named_parameters())
    asked: list[int] = []

    def second_fails(piece: PatientBatch) -> PatientBatch:
        asked.append(len(piece.labels))
        if len(asked) == 2:
            raise torch.OutOfMemoryError
        return piece

    with pytest.raises(torch.OutOfMemoryError):
        sums_of(model, in_pieces(batch, 1).changed(second_fails), "flat", 0.5)
    assert all(p is before[name] and p.grad is None for name, p in model.named_parameters())
    assert_same(sums_of(model, in_pieces(batch, 1), "flat", 0.5), want)
