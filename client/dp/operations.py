"""Operations on weights that the engine covers: each also makes every image's gradient known.

In the backward pass no gradient of a weight is computed. Operations with large weights hand in
the two factors of each image's gradient, the others each image's gradient itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from client.dp import recorded
from client.dp.convolution import Convolution
from client.dp.recording import Recording
from client.dp.weight import Function, Weight, tensors_in
from common.errors import UsageError

_NORMS = (
    functional.layer_norm,
    functional.rms_norm,
    functional.group_norm,
    functional.instance_norm,
)

# Elementwise operations whose arguments may broadcast.
_STEMS = ("add", "sub", "mul", "div", "truediv")
_BROADCASTING = frozenset(
    [name for stem in _STEMS for name in (stem, f"{stem}_", f"__i{stem}__", f"__r{stem}__")]
    + ["addcmul"]
)


def run(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function of torch that has a `Weight` among its arguments.

    Raises:
        UsageError: if the engine does not cover this use of the weight; names the weight.
    """
    match function:
        case functional.linear:
            return _linear(*args, **kwargs)
        case torch.conv1d | torch.conv2d | torch.conv3d:
            return _conv(*args, **kwargs)
        case torch.conv_transpose1d | torch.conv_transpose2d | torch.conv_transpose3d:
            return _conv_transpose(*args, **kwargs)
        case _ if function in _NORMS and args and isinstance(args[0], Weight):
            return _apart(function, args, kwargs)
        case functional.layer_norm:
            return _layer_norm(*args, **kwargs)
        case functional.rms_norm:
            return _rms_norm(*args, **kwargs)
        case functional.group_norm:
            return _group_norm(*args, **kwargs)
        case functional.instance_norm:
            return _instance_norm(*args, **kwargs)
        case functional.embedding:
            return _embedding(*args, **kwargs)
        case functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        case torch.Tensor.expand:
            return _expand(*args, **kwargs)
        case _ if getattr(function, "__name__", "") in _BROADCASTING:
            return _elementwise(function, args, kwargs)
        case _:
            return _apart(function, args, kwargs)


def _weights_in(*values: object) -> list[Weight]:
    return [tensor for tensor in tensors_in(values) if isinstance(tensor, Weight)]


def _refusal(values: object, operation: object) -> UsageError:
    names = ", ".join(weight.names() for weight in _weights_in(values))
    how = getattr(operation, "__name__", operation)
    return UsageError(
        f"private training does not cover {names} (used in {how}): train less of the model "
        "(finetune=head) or choose another"
    )


def _recording(*values: Tensor | None) -> Recording:
    return next(value.recording for value in values if isinstance(value, Weight))


def _apart(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function of weights and constants alone: its result is apart from the batch, too."""
    weights = _weights_in(args, kwargs)
    recording = weights[0].recording
    for tensor in tensors_in((args, kwargs)):
        constant = isinstance(tensor, Weight) or recording.is_constant(tensor)
        if tensor.is_floating_point() and not constant:
            raise _refusal((args, kwargs), function)
    return _computed(function(*args, **kwargs), weights)


def _computed(result: Any, weights: list[Weight]) -> Any:
    match result:
        case Tensor() if result.requires_grad:
            return Weight.computed(result, weights)
        case list() | tuple() if any(isinstance(item, Tensor) for item in result):
            return type(result)(_computed(item, weights) for item in result)
        case _:
            return result


def _elementwise(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A weight that broadcasts to a larger shape meets the batch."""
    tensors = list(tensors_in(args))
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    weights = _weights_in(args)
    if all(weight.shape == shape for weight in weights) or len(weights) == len(tensors):
        return _computed(function(*args, **kwargs), weights)
    met = [_meet(arg, shape) if isinstance(arg, Weight) else arg for arg in args]
    return function(*met, **kwargs)


def _meet(weight: Weight, shape: torch.Size) -> Tensor:
    """The weight, broadcast over the batch."""
    padded = (1,) * (len(shape) - weight.dim()) + tuple(weight.shape)
    if padded[0] != 1 or shape[0] % weight.recording.num_images:
        raise _refusal(weight, "an operation that is not over images")
    value, recording = weight.as_subclass(Tensor), weight.recording
    meet = partial(recording.meet, value, weight.leaves)
    # detached, so that the batch's backward pass ends here and leaves the value's graph alone
    above = value.detach().requires_grad_()
    return recorded.PerImage.apply(above, shape, recording.num_images, meet)


def _expand(weight: Weight, *sizes: Any) -> Tensor:
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    shape = weight.as_subclass(Tensor).expand(*flat).shape
    return weight if shape == weight.shape else _meet(weight, shape)


def _parameter(weight: Tensor | None, operation: str) -> recorded.Trained:
    """The parameter behind a stand-in; none for a frozen weight."""
    if not isinstance(weight, Weight):
        return None
    if weight.parameter is None:
        raise _refusal(weight, operation)
    return weight.parameter


def _plain(x: Tensor | None) -> Tensor | None:
    """The same tensor, no longer a `Weight`."""
    if not isinstance(x, Weight):
        return x
    return x.as_subclass(Tensor) if x.parameter is None else x.leaves[x.parameter]


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Plain tensors, in the type that autocast gives to products."""
    plain = (x, _plain(weight), _plain(bias))
    if not torch.is_autocast_enabled(x.device.type):
        return plain
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(None if t is None else t.to(dtype) for t in plain)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    recording = _recording(weight, bias, x)
    if isinstance(x, Weight) or recording.is_constant(x):
        return _apart(functional.linear, (x, weight, bias), {})
    if isinstance(bias, Weight) and bias.parameter is None:
        return _elementwise(torch.add, (_plain_or_linear(x, weight), bias), {})
    trained = _parameter(weight, "linear"), _parameter(bias, "linear")
    return recorded.Linear.apply(*_cast(x, weight, bias), recording, trained)


def _plain_or_linear(x: Tensor, weight: Tensor) -> Tensor:
    return _linear(x, weight) if isinstance(weight, Weight) else functional.linear(x, weight)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    dims = weight.dim() - 2
    spread = _sizes(dilation, dims)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
        x = functional.pad(x, [s for t in reversed(total) for s in (t // 2, t - t // 2)])
    convolution = Convolution(
        stride=_sizes(stride, dims),
        padding=_sizes(0 if isinstance(padding, str) else padding, dims),
        dilation=spread,
        groups=groups,
    )
    return _convolve(convolution, x, weight, bias)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    dims = weight.dim() - 2
    convolution = Convolution(
        stride=_sizes(stride, dims),
        padding=_sizes(padding, dims),
        dilation=_sizes(dilation, dims),
        groups=groups,
        transposed=True,
        output_padding=_sizes(output_padding, dims),
    )
    return _convolve(convolution, x, weight, bias)


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims // len(value))


def _convolve(convolution: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(x, Weight) or x.dim() != weight.dim():
        raise _refusal((x, weight, bias), "a convolution without a batch")
    trained = _parameter(weight, "a convolution"), _parameter(bias, "a convolution")
    recording = _recording(weight, bias)
    return recorded.Convolve.apply(*_cast(x, weight, bias), recording, trained, convolution)


def _layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    trained = _parameter(weight, "layer_norm"), _parameter(bias, "layer_norm")
    recording = _recording(weight, bias)
    shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()
    return recorded.LayerNorm.apply(
        x, _plain(weight), _plain(bias), recording, trained, (shape, eps)
    )


def _rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    assert isinstance(weight, Weight)
    return _elementwise(torch.mul, (functional.rms_norm(x, shape, None, eps), weight), {})


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _by_channel(functional.group_norm(x, num_groups, None, None, eps), weight, bias)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise _refusal((weight, bias), "instance_norm with running statistics")
    return _by_channel(functional.instance_norm(x, momentum=momentum, eps=eps), weight, bias)


def _by_channel(normalized: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Normalized (N, C, ...) * weight (C,) + bias (C,)."""
    ones = (1,) * (normalized.dim() - 2)
    if weight is not None:
        normalized = _scaled(torch.mul, normalized, weight, ones)
    return normalized if bias is None else _scaled(torch.add, normalized, bias, ones)


def _scaled(function: Function, x: Tensor, weight: Tensor, ones: tuple[int, ...]) -> Tensor:
    column = weight.view(-1, *ones)
    if not isinstance(weight, Weight):
        return function(x, column)
    return _elementwise(function, (x, Weight.computed(column, [weight])), {})


def _embedding(
    indices: Tensor,
    weight: Weight,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    del norm_type, sparse
    if max_norm is not None or scale_grad_by_freq:
        raise _refusal(weight, "embedding with max_norm or scale_grad_by_freq")
    parameter = _parameter(weight, "embedding")
    table, recording = _plain(weight), weight.recording
    return recorded.Embedding.apply(table, indices, recording, parameter, padding_idx)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    if _weights_in(query, key, value) or attn_mask is None:
        raise _refusal((query, key, value), "attention without a batch")
    shape = torch.Size((*query.shape[:-1], key.shape[-2]))
    mask = _meet(attn_mask, shape) if isinstance(attn_mask, Weight) else attn_mask
    return functional.scaled_dot_product_attention(query, key, value, mask, **options)
