"""The book-keeper against one backward pass for each patient."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.layer_scale import LayerScale
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from client.dp.bookkeeping import Bookkeeper
from client.dp.gradients import backward
from client.dp.patients import PatientBatch
from common.errors import UsageError

SIZE = 8
COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=4)
FEW = settings(max_examples=15, deadline=None)


def make_batch(counts: list[int], *, size: int = SIZE, seed: int = 0) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    num_images = sum(counts)
    return PatientBatch(
        images=torch.randn(num_images, 1, size, size, generator=generator),
        labels=torch.randint(0, 2, (num_images,), generator=generator),
        patients=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        num_patients=len(counts),
    )


def tiny_vit(**options: object) -> nn.Module:
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


def assert_equals_autograd(model: nn.Module, batch: PatientBatch) -> None:
    """Gradients of every weight and the norm, for every patient, to 1e-4 of the patient's norm."""
    keeper = Bookkeeper(model)
    norms = backward(model, keeper, batch)
    tapes = keeper.tapes()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is None for p in model.parameters())
    for patient in range(batch.num_patients):
        mine = batch.patients == patient
        engine: dict[nn.Parameter, Tensor] = {}
        with torch.no_grad():
            pairs = [pair for tape in tapes for pair in tape.weighted_sum(mine.float())]
        for parameter, gradient in pairs:
            assert parameter not in engine
            engine[parameter] = gradient
        # a plain forward pass: outside `recording` the layers are the model's own
        loss = functional.cross_entropy(model(batch.images[mine]), batch.labels[mine])
        expected = torch.autograd.grad(loss, list(trainable.values()))
        norm = torch.stack([gradient.norm() for gradient in expected]).norm()
        assert norm > 0
        assert float(norms[patient]) == pytest.approx(float(norm), rel=1e-4)
        assert set(engine) == set(trainable.values())
        for (name, parameter), want in zip(trainable.items(), expected, strict=True):
            # single weights may be zero in truth, such as a key's bias under softmax
            scale = max(float(want.norm()), 1e-3 * float(norm))
            assert float((engine[parameter] - want).norm()) <= 1e-4 * scale, name


def seeded(build: type[nn.Module], *arguments: object, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(*arguments)


@FEW
@given(COUNTS, st.integers(0, 99))
def test_vision_transformer(counts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = tiny_vit(init_values=0.5, reg_tokens=1)
    for parameter in model.parameters():  # tokens and biases start at zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    assert_equals_autograd(model, make_batch(counts, size=32, seed=seed))


@FEW
@given(COUNTS)
def test_frozen_layers_keep_nothing(counts: list[int]) -> None:
    model = tiny_vit()
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    batch = make_batch(counts, size=32)
    assert_equals_autograd(model, batch)
    keeper = Bookkeeper(model)
    backward(model, keeper, batch)
    assert len(keeper.tapes()) == 1


@pytest.mark.parametrize("trained", ["weight", "bias"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.LayerNorm])
def test_half_frozen_layers(kind: type[nn.Module], trained: str) -> None:
    model = seeded(Mixed, seed=3)
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, kind):
            getattr(module, trained).requires_grad_(True)
    assert_equals_autograd(model, make_batch([1, 3, 2]))


class Mixed(nn.Module):
    """Every kind of covered layer once, at the odd shapes that it may see."""

    def __init__(self, kernel: int = 3, stride: int = 2, padding: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, kernel, stride=stride, padding=padding, dilation=dilation)
        self.top = nn.Conv2d(6, 4, 1)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 5)
        self.scale = LayerScale(5, init_values=0.3)
        self.head = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.top(torch.tanh(self.conv(images))).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(maps), -1, -1), maps], dim=1)
        return self.head(torch.tanh(self.scale(self.linear(self.norm(tokens)))).mean(1))


@FEW
@given(
    COUNTS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.one_of(st.integers(0, 2), st.sampled_from(["same", "valid"])),
    st.integers(1, 2),
)
def test_convolutions(
    counts: list[int], kernel: int, stride: int, padding: int | str, dilation: int
) -> None:
    if padding == "same":  # torch takes it with stride 1 only, and warns of even kernels
        kernel, stride = 3, 1
    model = seeded(Mixed, kernel, stride, padding, dilation, seed=kernel)
    assert_equals_autograd(model, make_batch(counts, seed=dilation))


class Windows(nn.Module):
    """Linear layers that see windows folded into the batch, as Swin's do."""

    def __init__(self, depth: int = 0):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.norm = nn.LayerNorm((2, 6))
        self.inner = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 2)
        self.depth = depth

    def forward(self, images: Tensor) -> Tensor:
        num_images = len(images)
        windows = images.reshape(num_images * 4, *([2] * self.depth), -1, 2, 4)
        hidden = torch.tanh(self.inner(self.norm(self.embed(windows))))
        return self.head(hidden.reshape(num_images, -1, 6).mean(1))


@FEW
@given(COUNTS, st.integers(0, 1))
def test_windows_folded_into_the_batch(counts: list[int], depth: int) -> None:
    assert_equals_autograd(seeded(Windows, depth, seed=depth), make_batch(counts))


class Twice(nn.Module):
    """One layer of each kind used twice, with different numbers of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.mix = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(torch.tanh(self.conv(images))).squeeze(1)
        hidden = self.norm(torch.tanh(self.mix(maps)))
        return self.head(self.norm(self.mix(hidden[:, :3])).mean(1))


@FEW
@given(COUNTS)
def test_layers_used_twice(counts: list[int]) -> None:
    assert_equals_autograd(seeded(Twice, seed=1), make_batch(counts))


@FEW
@given(COUNTS, st.integers(1, 40), st.integers(1, 40))
def test_both_ways_to_a_norm(counts: list[int], wide: int, narrow: int) -> None:
    # few positions with wide layers take the Gram matrices, many with narrow ones the gradient
    model = nn.Sequential(nn.Linear(8, wide), nn.Tanh(), nn.Linear(wide, narrow), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(8 * narrow, 2))
    assert_equals_autograd(model, make_batch(counts))


def test_a_plain_pass_after_a_recorded_one_trains_as_ever() -> None:
    model, batch = seeded(Mixed, seed=0), make_batch([2, 1])
    expected = functional.cross_entropy(model(batch.images), batch.labels)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    backward(model, Bookkeeper(model), batch)
    functional.cross_entropy(model(batch.images), batch.labels).backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert isinstance(parameter, nn.Parameter)
        assert torch.equal(parameter.grad, gradient)


def test_weights_are_whole_again_when_a_pass_fails() -> None:
    model = seeded(Mixed, seed=0)
    before = dict(model.named_parameters())
    keeper = Bookkeeper(model)
    with pytest.raises(RuntimeError), keeper.recording(2):
        model(torch.zeros(2, 3, 8, 8))
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(p is before[name] for name, p in model.named_parameters())
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 2)


class Rectified(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(4, 2)


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Embedding(3, 4), "layer.weight (Embedding)"),
        (nn.Embedding(1, 4), "layer.weight (Embedding)"),
        (nn.BatchNorm2d(4), "layer.weight, layer.bias (BatchNorm2d)"),
        (nn.BatchNorm2d(1), "layer.weight, layer.bias (BatchNorm2d)"),
        (nn.GroupNorm(2, 4), "layer.weight, layer.bias (GroupNorm)"),
        (nn.ConvTranspose2d(4, 4, 2), "layer.weight, layer.bias (ConvTranspose2d)"),
        (nn.ConvTranspose2d(1, 1, 2, bias=False), "layer.weight (ConvTranspose2d)"),
        (nn.Conv2d(4, 4, 3, groups=2), "layer.weight, layer.bias (Conv2d)"),
        (
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            "layer.weight, layer.bias (Conv2d)",
        ),
        (nn.PReLU(), "layer.weight (PReLU)"),
        (nn.MultiheadAttention(4, 2), "layer.in_proj_weight, layer.in_proj_bias (Multihead"),
        (LayerNorm2d(4), "layer.weight, layer.bias (LayerNorm2d)"),
        (Doubling(4, 4), "layer.weight, layer.bias (Doubling)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_not_covered_are_refused_by_name(layer: nn.Module, name: str) -> None:
    model = Rectified(layer)
    with pytest.raises(UsageError, match="does not cover") as caught:
        Bookkeeper(model)
    assert name in str(caught.value)
    layer.requires_grad_(False)
    Bookkeeper(model)


def test_swins_bias_table_is_refused_by_name() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(2, 2),
        in_chans=1,
        num_classes=2,
    )
    with pytest.raises(UsageError, match=r"attn\.relative_position_bias_table \(WindowAttention\)"):
        Bookkeeper(model)


def test_shared_weights_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(UsageError, match=r"1\.weight \(shared with 0\.weight\)"):
        Bookkeeper(model)
