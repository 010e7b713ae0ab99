"""Autograd functions that hand each image's gradient of a weight to a `Recording`.

Each returns no gradient of the weight: that is the point. ``trained`` names the weight and the
bias where they are trained; nothing is kept for a frozen one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from client.dp.convolution import Convolution
from client.dp.recording import Recording
from client.dp.tapes import KEEP

Trained = nn.Parameter | None
_Pair = tuple[Trained, Trained]


def _announce(recording: Recording, trained: _Pair) -> None:
    for parameter in trained:
        if parameter is not None:
            recording.will_use(parameter)


class Linear(Function):
    """y = x W^T + b at every position; x (N, ..., d), W (p, d), b (p,)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        recording: Recording,
        trained: _Pair,
    ) -> Tensor:
        """See the class."""
        _announce(recording, trained)
        ctx.recording, ctx.trained = recording, trained
        ctx.save_for_backward(x if trained[0] is not None else None, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """See the class."""
        (x, weight), (g,) = ctx.saved_tensors, gradients
        recording, (trained, bias) = ctx.recording, ctx.trained
        by_image = recording.positions(g)
        if trained is not None:
            recording.product(trained, recording.positions(x), by_image)
        if bias is not None:
            recording.each(bias, by_image.sum(1))
        below = g @ weight if ctx.needs_input_grad[0] else None
        return below, None, None, None, None


class Convolve(Function):
    """A convolution; x (N, C, ...), b (O,)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        recording: Recording,
        trained: _Pair,
        convolution: Convolution,
    ) -> Tensor:
        """See the class."""
        _announce(recording, trained)
        ctx.recording, ctx.trained, ctx.convolution = recording, trained, convolution
        # the gradient of x depends on its shape alone
        kept = x if trained[0] is not None else x.new_empty(1).expand(x.shape)
        ctx.save_for_backward(kept, weight)
        return convolution.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """See the class."""
        (x, weight), (g,) = ctx.saved_tensors, gradients
        recording, (trained, bias) = ctx.recording, ctx.trained
        if trained is not None:
            _hand_in_convolution(ctx.convolution, recording, trained, x, g)
        if bias is not None:
            recording.each(bias, _by_image(g.flatten(2).sum(2), recording.num_images))
        below = None
        if ctx.needs_input_grad[0]:
            below = ctx.convolution.input_gradient(g, x, weight)
        return below, None, None, None, None, None


def _hand_in_convolution(
    convolution: Convolution, recording: Recording, trained: nn.Parameter, x: Tensor, g: Tensor
) -> None:
    whole = x if convolution.transposed else g
    num_positions = whole[0, 0].numel() * len(x) // recording.num_images
    if convolution.prefers_factors(num_positions, trained.shape, KEEP):
        columns, others = convolution.factors(g, x, trained.shape)
        recording.product(trained, recording.positions(columns), recording.positions(others))
    else:
        each = convolution.image_gradients(g, x, trained.shape)
        recording.each(trained, _by_image(each, recording.num_images))


def _by_image(values: Tensor, num_images: int) -> Tensor:
    """Sum (n * k, ...) over what is of the same image: (n, ...)."""
    if len(values) == num_images:
        return values
    return values.unflatten(0, (num_images, -1)).sum(1)


class LayerNorm(Function):
    """Normalises over the last dimensions, then scales and shifts; options are shape and eps."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        recording: Recording,
        trained: _Pair,
        options: tuple[list[int], float],
    ) -> Tensor:
        """See the class."""
        _announce(recording, trained)
        y, mean, rstd = torch.native_layer_norm(x, options[0], weight, bias, options[1])
        ctx.recording, ctx.trained, ctx.shape = recording, trained, options[0]
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """See the class."""
        (x, weight, bias, mean, rstd), (g,) = ctx.saved_tensors, gradients
        recording, (scale, shift) = ctx.recording, ctx.trained
        by_image = (recording.num_images, -1, *ctx.shape)
        if scale is not None:
            products = torch.sub(x, mean).mul_(rstd).mul_(g)
            recording.each(scale, products.reshape(by_image).sum(1))
        if shift is not None:
            recording.each(shift, g.reshape(by_image).sum(1))
        below = None
        if ctx.needs_input_grad[0]:
            below = torch.ops.aten.native_layer_norm_backward(
                g, x, ctx.shape, mean, rstd, weight, bias, [True, False, False]
            )[0]
        return below, None, None, None, None, None


class Embedding(Function):
    """Rows of a table (V, d), looked up by indices (N, ...); keeps (n, V, d)."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        indices: Tensor,
        recording: Recording,
        trained: nn.Parameter,
        padding_index: int | None,
    ) -> Tensor:
        """See the class."""
        recording.will_use(trained)
        ctx.recording, ctx.trained, ctx.padding_index = recording, trained, padding_index
        ctx.save_for_backward(indices)
        return functional.embedding(indices, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """See the class."""
        (indices,), (g,) = ctx.saved_tensors, gradients
        num_images, (num_rows, width) = ctx.recording.num_images, ctx.trained.shape
        rows = indices.reshape(num_images, -1)
        each = g.new_zeros((num_images, num_rows, width))
        each.scatter_add_(
            1, rows.unsqueeze(2).expand(-1, -1, width), g.reshape(num_images, -1, width)
        )
        if ctx.padding_index is not None:
            each[:, ctx.padding_index] = 0.0
        ctx.recording.each(ctx.trained, each)
        return None, None, None, None, None


class PerImage(Function):
    """A value broadcast to ``shape``, whose leading dimension runs over the images.

    ``meet`` takes each image's gradient of the value, (n, ...).
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shape: torch.Size, num_images: int, meet: Callable[[Tensor], None]
    ) -> Tensor:
        """See the class."""
        ctx.shape, ctx.num_images, ctx.meet = value.shape, num_images, meet
        return value.expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """See the class."""
        (g,) = gradients
        each = g.unflatten(0, (ctx.num_images, -1))
        aligned = (1,) * (each.dim() - len(ctx.shape)) + tuple(ctx.shape)
        same = [i for i in range(1, each.dim()) if aligned[i] == 1 and each.shape[i] > 1]
        each = each.sum(same) if same else each
        ctx.meet(each.reshape(ctx.num_images, *ctx.shape))
        return None, None, None, None
