"""Every operation on weights, at shapes that hypothesis draws, against one pass for each patient.

A model here is ``head(operation(stem(images)))``: what the operation gets and gives depends on
the image in earnest, and the stem shows that the gradient below the operation is right as well.
In 64 bits, so that a drawn shape may be as ill-conditioned as it likes; whole models run in 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.layer_scale import LayerScale, LayerScale2d
from torch import Tensor, nn
from torch.nn import functional

COUNTS = st.lists(st.integers(1, 3), min_size=1, max_size=3)
SOME = settings(max_examples=25, deadline=None)
FEW = settings(max_examples=10, deadline=None)

CONVOLUTIONS: list[Any] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED: list[Any] = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


class Around(nn.Module):
    """A stem of its own for each number, the part, and a head over all that comes out."""

    def __init__(self, part: nn.Module, use: Callable[[nn.Module, Tensor], Tensor] | None = None):
        super().__init__()
        self.stem = nn.Linear(1, 1)
        self.part = part
        self.use = use
        self.head = nn.LazyLinear(2)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.stem(images.unsqueeze(-1)).squeeze(-1))
        y = self.part(x) if self.use is None else self.use(self.part, x)
        return self.head(torch.tanh(y.flatten(1)))


def around(
    part: Callable[[], nn.Module],
    shape: tuple[int, ...],
    use: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> nn.Module:
    torch.manual_seed(0)
    model = Around(part(), use)
    with torch.no_grad():
        model(torch.zeros(1, *shape))
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    return model.double()


def freeze(data: st.DataObject, part: nn.Module) -> None:
    """The whole part trained, its weight alone, or its bias alone."""
    which = data.draw(st.sampled_from(["both", "weight", "bias"]), label="trained")
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(which == "both" or name.endswith(which))


@pytest.mark.parametrize("kind", CONVOLUTIONS, ids=lambda kind: kind.__name__)
@SOME
@given(data=st.data(), counts=COUNTS)
def test_convolutions(
    oracle: Any, make_batch: Any, kind: Any, data: st.DataObject, counts: list[int]
) -> None:
    dims = CONVOLUTIONS.index(kind) + 1

    def sizes(low: int, high: int, label: str) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high), label=label) for _ in range(dims))

    groups = data.draw(st.integers(1, 3), label="groups")
    below, above = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    padding = data.draw(st.sampled_from(["sizes", "same", "valid"]), label="padding")
    padding_mode = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"]))
    kernel = sizes(1, 3, "kernel")
    dilation = sizes(1, 2, "dilation")
    if padding == "same":  # torch warns of what it must pad unevenly
        kernel = tuple(k | 1 for k in kernel)
    side = {1: 12, 2: 7, 3: 5}[dims]
    shape = (below, *sizes(side, side + 1, "side"))
    model = around(
        lambda: kind(
            below,
            above,
            kernel,
            stride=1 if padding == "same" else sizes(1, 3, "stride"),
            padding=sizes(0, 1, "padding") if padding == "sizes" else padding,
            dilation=dilation,
            groups=groups,
            bias=data.draw(st.booleans(), label="bias"),
            padding_mode=padding_mode,
        ),
        shape,
    )
    freeze(data, model.part)
    oracle.assert_recorded(model, make_batch(counts, shape, dtype=torch.float64))


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_uneven_padding_of_an_even_kernel(oracle: Any, make_batch: Any, side: int) -> None:
    model = around(lambda: nn.Conv2d(2, 3, (4, 2), padding="same"), (2, side, side))
    oracle.assert_recorded(model, make_batch([2, 1], (2, side, side), dtype=torch.float64))


@pytest.mark.parametrize("kind", TRANSPOSED, ids=lambda kind: kind.__name__)
@SOME
@given(data=st.data(), counts=COUNTS)
def test_transposed_convolutions(
    oracle: Any, make_batch: Any, kind: Any, data: st.DataObject, counts: list[int]
) -> None:
    dims = TRANSPOSED.index(kind) + 1

    def sizes(low: int, high: int, label: str) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high), label=label) for _ in range(dims))

    groups = data.draw(st.integers(1, 2), label="groups")
    # few channels are kept as gradients, many as factors
    below, above = (groups * data.draw(st.sampled_from([1, 2, 12])) for _ in range(2))
    stride, dilation = sizes(1, 3, "stride"), sizes(1, 2, "dilation")
    output_padding = tuple(
        data.draw(st.integers(0, max(s, d) - 1), label="output_padding")
        for s, d in zip(stride, dilation, strict=True)
    )
    shape = (below, *sizes(2, 3, "side"))
    model = around(
        lambda: kind(
            below,
            above,
            sizes(2, 3, "kernel"),
            stride=stride,
            padding=sizes(0, 1, "padding"),
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
            bias=data.draw(st.booleans(), label="bias"),
        ),
        shape,
    )
    freeze(data, model.part)
    oracle.assert_recorded(model, make_batch(counts, shape, dtype=torch.float64))


@SOME
@given(
    data=st.data(),
    counts=COUNTS,
    leading=st.lists(st.integers(1, 4), max_size=3),
    wide=st.integers(1, 24),
    narrow=st.integers(1, 24),
    windows=st.integers(0, 2),
)
def test_linear_layers_at_any_leading_dimensions_and_windows(
    oracle: Any,
    make_batch: Any,
    data: st.DataObject,
    counts: list[int],
    leading: list[int],
    wide: int,
    narrow: int,
    windows: int,
) -> None:
    """Windows are folded into the batch, as in Swin: rows of one image stand together."""
    folded = leading[:windows]

    def use(part: nn.Module, x: Tensor) -> Tensor:
        y = part(x.flatten(0, len(folded)))
        return y.unflatten(0, (len(x), -1))

    shape = (*leading, wide)
    bias = data.draw(st.booleans(), label="bias")
    model = around(lambda: nn.Linear(wide, narrow, bias=bias), shape, use)
    freeze(data, model.part)
    oracle.assert_recorded(model, make_batch(counts, shape, dtype=torch.float64))


@SOME
@given(
    data=st.data(),
    counts=COUNTS,
    over=st.lists(st.integers(3, 4), min_size=1, max_size=3),
    positions=st.lists(st.integers(1, 3), max_size=2),
    windows=st.integers(1, 2),
)
def test_layer_norm(
    oracle: Any,
    make_batch: Any,
    data: st.DataObject,
    counts: list[int],
    over: list[int],
    positions: list[int],
    windows: int,
) -> None:
    shape = (windows, *positions, *over)

    def use(part: nn.Module, x: Tensor) -> Tensor:
        return part(x.flatten(0, 1)).unflatten(0, (len(x), windows))

    bias = data.draw(st.booleans(), label="bias")
    model = around(lambda: nn.LayerNorm(over, bias=bias), shape, use)
    freeze(data, model.part)
    oracle.assert_recorded(model, make_batch(counts, shape, dtype=torch.float64))


@FEW
@given(data=st.data(), counts=COUNTS, over=st.lists(st.integers(2, 4), min_size=1, max_size=2))
def test_rms_norm(
    oracle: Any, make_batch: Any, data: st.DataObject, counts: list[int], over: list[int]
) -> None:
    shape = (data.draw(st.integers(1, 3)), *over)
    model = around(lambda: nn.RMSNorm(over), shape)
    oracle.assert_recorded(model, make_batch(counts, shape, dtype=torch.float64))


@SOME
@given(
    data=st.data(),
    counts=COUNTS,
    groups=st.integers(1, 3),
    each=st.integers(1, 2),
    sides=st.lists(st.integers(3, 4), min_size=1, max_size=3),
    instance=st.booleans(),
)
def test_group_and_instance_norm(
    oracle: Any,
    make_batch: Any,
    data: st.DataObject,
    counts: list[int],
    groups: int,
    each: int,
    sides: list[int],
    instance: bool,
) -> None:
    channels = groups * each
    kinds: list[Any] = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d]

    def part() -> nn.Module:
        if instance:
            return kinds[len(sides) - 1](channels, affine=True)
        return nn.GroupNorm(groups, channels)

    shape = (channels, *sides)
    model = around(part, shape)
    freeze(data, model.part)
    oracle.assert_recorded(model, make_batch(counts, shape, dtype=torch.float64))


@SOME
@given(
    counts=COUNTS,
    rows=st.integers(1, 5),
    width=st.integers(1, 4),
    lookups=st.lists(st.integers(1, 3), max_size=2),
    padding=st.one_of(st.none(), st.integers(-5, 4)),
)
def test_embedding(
    oracle: Any,
    make_batch: Any,
    counts: list[int],
    rows: int,
    width: int,
    lookups: list[int],
    padding: int | None,
) -> None:
    padding = None if padding is None or not -rows <= padding < rows else padding
    shape = tuple(lookups)

    def use(part: nn.Module, x: Tensor) -> Tensor:
        index = (x.detach() * 2 + rows / 2).long().clamp(0, rows - 1)
        return part(index) + x.unsqueeze(-1)

    model = around(lambda: nn.Embedding(rows, width, padding_idx=padding), shape, use)
    oracle.assert_recorded(model, make_batch(counts, shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (lambda: LayerScale(5, init_values=0.3), (3, 5)),
        (lambda: LayerScale(5, init_values=0.3, inplace=True), (3, 5)),
        (lambda: LayerScale2d(3, init_values=0.3), (3, 2, 2)),
        (lambda: LayerScale2d(3, init_values=0.3, inplace=True), (3, 2, 2)),
    ],
)
def test_layer_scale(oracle: Any, make_batch: Any, part: Any, shape: tuple[int, ...]) -> None:
    use = lambda part, x: part(x * 1.0)  # noqa: E731 - an own copy for what writes in place
    oracle.assert_recorded(
        around(part, shape, use), make_batch([1, 3, 2], shape, dtype=torch.float64)
    )


class Direct(nn.Module):
    """Parameters that sit in a module; (3, 4) features of 2 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 3, 4))
        self.scale = nn.Parameter(torch.randn(1, 1))
        self.number = nn.Parameter(torch.randn(()))
        self.table = nn.Parameter(torch.randn(9, 2))
        self.frozen = nn.Parameter(torch.randn(3, 4), requires_grad=False)
        self.index: Tensor
        self.register_buffer("index", torch.randint(0, 9, (3, 3)))
        self.constant: Tensor
        self.register_buffer("constant", torch.randn(4))


def _augmented(module: Any, x: Tensor) -> Tensor:
    x += module.positions
    x *= module.scale
    x -= module.token
    x /= 1.5
    return x


def _bias(module: Any) -> Tensor:
    """Swin's relative position bias, (1, 2, 3, 3)."""
    return module.table[module.index.view(-1)].view(3, 3, -1).permute(2, 0, 1).unsqueeze(0)


def _attend(module: Any, x: Tensor) -> Tensor:
    heads = x.unflatten(-1, (2, 2)).transpose(1, 2)
    return functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=_bias(module))


DIRECT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "token expanded": lambda m, x: torch.cat([m.token.expand(len(x), -1, -1), x], 1),
    "token expanded by sizes": lambda m, x: torch.cat([m.token.expand((len(x), 2, 4)), x], 1),
    "positions on the right": lambda m, x: x + m.positions,
    "positions on the left": lambda m, x: m.positions - x,
    "without a batch dimension": lambda m, x: x * m.positions[0],
    "in place": lambda m, x: (x * 1.0).mul_(m.scale).add_(m.positions),
    "augmented": lambda m, x: _augmented(m, x * 1.0),
    "number": lambda m, x: m.number * x + m.number,
    "divided": lambda m, x: x / (m.scale**2 + 1.0),
    "dividing": lambda m, x: m.positions / (x**2 + 1.0),
    "exp and clamp": lambda m, x: x * m.scale.clamp(max=0.5).exp(),
    "scaled addition": lambda m, x: torch.add(x, m.positions, alpha=0.3),
    "addcmul": lambda m, x: torch.addcmul(x, x, m.scale, value=0.5),
    "table by index": lambda m, x: x[:, None, :, :3] * _bias(m),
    "table as attention mask": _attend,
    "computed from two": lambda m, x: x * (m.token * m.positions).softmax(-1),
    "two parts of one": lambda m, x: x * m.positions[:, :1] + m.positions[:, 1:2],
    "split": lambda m, x: x * m.positions.chunk(2, dim=-1)[0].repeat(1, 1, 2),
    "cat with a buffer": lambda m, x: x[:, :2] * torch.cat([m.token[0], m.frozen])[:2],
    "with a buffer": lambda m, x: x * (m.token * m.constant),
    "with a frozen one": lambda m, x: x * (m.positions + m.frozen),
    "bias of frozen weights": lambda m, x: functional.linear(x, m.frozen, m.positions[0, :, 0]),
    "computed bias": lambda m, x: functional.linear(
        x, m.frozen, torch.cat((m.scale[0], m.number[None], m.scale[0]))
    ),
    "reshaped": lambda m, x: x.flatten(1) * m.positions.flatten(),
    "interpolated": lambda m, x: (
        x * functional.interpolate(m.positions[..., :2].permute(0, 2, 1), size=4).mean(1)
    ),
    "detached": lambda m, x: x * m.scale.detach() + m.scale,
    "shape looked at": lambda m, x: x + m.positions.view(m.positions.shape).to(x.dtype),
}


@pytest.mark.parametrize("kind", DIRECT)
@pytest.mark.parametrize("counts", [[1, 3, 2], [1, 1]], ids=str)
def test_parameters_that_sit_in_a_module(
    oracle: Any, make_batch: Any, kind: str, counts: list[int]
) -> None:
    model = around(Direct, (3, 4), DIRECT[kind])
    oracle.assert_recorded(model, make_batch(counts, (3, 4), dtype=torch.float64))


@FEW
@given(data=st.data(), counts=COUNTS, shape=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_parameters_broadcast_from_any_shape(
    oracle: Any, make_batch: Any, data: st.DataObject, counts: list[int], shape: list[int]
) -> None:
    kept = data.draw(st.integers(0, len(shape)), label="dimensions kept")
    own = [size if data.draw(st.booleans()) else 1 for size in shape[len(shape) - kept :]]
    leading = (1,) if kept == len(shape) and data.draw(st.booleans()) else ()
    left = data.draw(st.booleans(), label="on the left")

    def part() -> nn.Module:
        return nn.ParameterList([torch.randn((*leading, *own))])

    def use(part: Any, x: Tensor) -> Tensor:
        return part[0] * x if left else x + part[0].exp()

    model = around(part, tuple(shape), use)
    oracle.assert_recorded(model, make_batch(counts, tuple(shape), dtype=torch.float64))


class Tokens(nn.Module):
    """Tokens that pass layers before they meet the images, as prompts and queries do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.tokens = nn.Parameter(torch.randn(1, 3, 4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.rms = nn.RMSNorm(4)
        self.group = nn.GroupNorm(1, 3)
        for name, module in self.named_children():
            module.requires_grad_(name == kind)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(getattr(self, self.kind)(self.tokens))


@pytest.mark.parametrize("layer_trained", [False, True])
@pytest.mark.parametrize("kind", ["linear", "norm", "rms", "group"])
def test_tokens_that_pass_a_layer_before_they_meet_images(
    oracle: Any, make_batch: Any, kind: str, layer_trained: bool
) -> None:
    model = around(lambda: Tokens(kind), (3, 4))
    getattr(model.part, kind).requires_grad_(layer_trained)
    oracle.assert_recorded(model, make_batch([1, 3, 2], (3, 4), dtype=torch.float64))
