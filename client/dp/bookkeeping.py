"""Per-patient clipping at nearly the cost of ordinary training: book-keeping.

One backward pass runs without computing any weight's gradient; each layer keeps its input and
the gradient of its output. From these follow the norm of every patient's gradient, and then,
once the clipping factors are known, one weighted product for each layer gives the sum of clipped
gradients. Nothing of the size (patients x weights) has to be kept (Bu et al. 2023, "Differentially
Private Optimization on Large Model at Small Cost", arXiv 2210.00038).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.dp.patients import PatientBatch
from common.errors import UsageError
from common.models import LayerScale, TimmLayerNorm

# Squared rounding error of a sum of products, as a part of the squared sum of their sizes.
_ROUNDING = 4 * torch.finfo(torch.float32).eps


class Tape(Protocol):
    """What one layer kept of one backward pass over n images of P patients."""

    def squared_norms(self, batch: PatientBatch) -> Tensor:
        """(P,) squared norm of each patient's gradient of this layer's weights."""
        ...

    def weighted_sum(self, factors: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Sum over images of ``factors`` (n,) times the image's gradient, by weight."""
        ...


@dataclass(kw_only=True)
class ProductTape:
    """A layer whose weight's gradient is a product: y = W a + b at each of T positions.

    Attributes:
        weight: (p, d), or any shape with p rows and d numbers in each.
        bias: (p,) or none.
        inputs: a, (n, T, d), one tensor for each time the layer was used.
        outputs: gradient of y, (n, T, p), likewise.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def _joined(self) -> tuple[Tensor, Tensor]:
        if len(self.inputs) > 1:
            self.inputs[:] = [torch.cat(self.inputs, dim=1)]
            self.outputs[:] = [torch.cat(self.outputs, dim=1)]
        return self.inputs[0], self.outputs[0]

    def squared_norms(self, batch: PatientBatch) -> Tensor:
        """See `Tape`.

        With T positions of a patient, the Gram matrices of inputs and outputs cost T^2 (p + d),
        the gradient itself T p d and its size in memory traffic: the cheaper is taken.

        Positions can cancel almost entirely, and then what is left is rounding: read as the norm,
        it would let a patient through unclipped. So the norm errs upwards by what rounding can
        hide (for up to 400 positions less than 1e-4 of it).
        """
        a, g = self._joined()
        if batch.num_patients < len(a):
            a, g = batch.gather(a), batch.gather(g)
        positions, p, d = a.shape[1], g.shape[2], a.shape[2]
        total = a.new_zeros(batch.num_patients)
        if self.weight.requires_grad:
            if positions * (p + d) < p * d:
                gram = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(g, g.transpose(1, 2)))
                total += gram.sum(dim=(1, 2)).clamp_(min=0.0)
            else:
                total += torch.bmm(g.transpose(1, 2), a).flatten(1).square().sum(1)
            total += _ROUNDING * (a.norm(dim=2) * g.norm(dim=2)).sum(1).square()
        if self.bias is not None and self.bias.requires_grad:
            total += g.sum(1).square().sum(1)
            total += _ROUNDING * g.norm(dim=2).sum(1).square()
        return total

    def weighted_sum(self, factors: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """See `Tape`."""
        a, g = self._joined()
        weighted = g * factors.view(-1, 1, 1)
        sums: list[tuple[nn.Parameter, Tensor]] = []
        if self.weight.requires_grad:
            product = weighted.flatten(0, 1).t() @ a.flatten(0, 1)
            sums.append((self.weight, product.view_as(self.weight)))
        if self.bias is not None and self.bias.requires_grad:
            sums.append((self.bias, weighted.sum(dim=(0, 1))))
        return sums


@dataclass(kw_only=True)
class DirectTape:
    """A layer with few weights: each image's gradient (n, ...) is kept as it is."""

    gradients: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Keep a gradient; a weight used several times sums up."""
        known = self.gradients.get(parameter)
        self.gradients[parameter] = gradient if known is None else known + gradient

    def squared_norms(self, batch: PatientBatch) -> Tensor:
        """See `Tape`; errs upwards as `ProductTape` does, where images cancel."""
        squares: list[Tensor] = []
        for gradient in self.gradients.values():
            each = gradient.flatten(1)
            hidden = _ROUNDING * batch.fold(each.norm(dim=1)).square()
            squares.append(batch.fold(each).square().sum(1) + hidden)
        return torch.stack(squares).sum(0)

    def weighted_sum(self, factors: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """See `Tape`."""
        return [
            (parameter, torch.tensordot(factors, gradient, dims=1).view_as(parameter))
            for parameter, gradient in self.gradients.items()
        ]


class Bookkeeper:
    """Attaches to a model; between `recording` and the next one, its tapes can be read.

    Covered: Linear, Conv2d (one group), LayerNorm, LayerScale, and tokens that sit directly in a
    module with a leading dimension of one (``cls_token``, ``pos_embed``, ``reg_token``).

    Raises:
        UsageError: if a trainable weight sits in another kind of layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tapes: dict[nn.Module, Tape] = {}
        self._tokens: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._token_leaves: list[tuple[nn.Parameter, Tensor]] = []
        self._num_images = 0
        owners: dict[nn.Parameter, str] = {}
        for name, module in model.named_modules():
            mine = {k: p for k, p in module.named_parameters(recurse=False) if p.requires_grad}
            for key, parameter in mine.items():
                full_name = f"{name}.{key}".strip(".")
                if parameter in owners:
                    raise _not_covered(f"{full_name} (shared with {owners[parameter]})")
                owners[parameter] = full_name
            if mine:
                self._attach(name, module, mine)

    def _attach(self, name: str, module: nn.Module, mine: dict[str, nn.Parameter]) -> None:
        match module:
            case nn.Linear() if _computes(module, nn.Linear):
                self._replace(module, self._linear)
            case nn.Conv2d() if (
                _computes(module, nn.Conv2d)
                and module.groups == 1
                and module.padding_mode == "zeros"
            ):
                self._replace(module, self._conv2d)
            case nn.LayerNorm() if _computes(module, nn.LayerNorm, TimmLayerNorm):
                self._replace(module, self._layer_norm)
            case LayerScale() if _computes(module, LayerScale):
                self._replace(module, self._layer_scale)
            case _ if not type(module).__module__.startswith("torch.nn.") and all(
                p.dim() > 1 and len(p) == 1 for p in mine.values()
            ):
                self._tokens += [(module, key, p) for key, p in mine.items()]
            case _:
                kind = type(module).__name__
                raise _not_covered(", ".join(f"{name}.{k}".strip(".") for k in mine) + f" ({kind})")

    def _replace(self, module: nn.Module, recorded: Callable[[Any, Tensor], Tensor]) -> None:
        original = module.forward

        def forward(x: Tensor) -> Tensor:
            return recorded(module, x) if self._num_images else original(x)

        module.forward = forward

    @contextmanager
    def recording(self, num_images: int) -> Iterator[None]:
        """Forward and backward passes inside are kept; they must see ``num_images`` images."""
        self._tapes.clear()
        self._token_leaves.clear()
        self._num_images = num_images
        for module, key, parameter in self._tokens:
            leaf = parameter.detach().expand(num_images, *parameter.shape[1:]).clone()
            leaf.requires_grad_()
            module._parameters[key] = cast("nn.Parameter", leaf)
            self._token_leaves.append((parameter, leaf))
        try:
            yield
        finally:
            self._num_images = 0
            for module, key, parameter in self._tokens:
                module._parameters[key] = parameter

    def tapes(self) -> list[Tape]:
        """What the last recorded pass kept."""
        tokens = DirectTape()
        for parameter, leaf in self._token_leaves:
            if leaf.grad is not None:
                tokens.add(parameter, leaf.grad)
        return [*self._tapes.values(), *([tokens] if tokens.gradients else [])]

    def forget(self) -> None:
        """Free what the last pass kept."""
        self._tapes.clear()
        self._token_leaves.clear()

    def _positions(self, x: Tensor) -> Tensor:
        """(n * k, ..., d) → (n, T, d): windows folded into the batch go back to their image."""
        return x.reshape(self._num_images, -1, x.shape[-1])

    def _product_tape(self, module: nn.Linear | nn.Conv2d) -> ProductTape:
        weight, bias = module.weight, module.bias
        fresh = ProductTape(
            weight=cast("nn.Parameter", weight), bias=cast("nn.Parameter | None", bias)
        )
        return cast("ProductTape", self._tapes.setdefault(module, fresh))

    def _linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        def keep(inputs: Tensor, outputs: Tensor) -> None:
            tape = self._product_tape(module)
            tape.inputs.append(self._positions(inputs))
            tape.outputs.append(self._positions(outputs))

        return cast("Tensor", _Linear.apply(x, module.weight, module.bias, keep))

    def _conv2d(self, module: nn.Conv2d, x: Tensor) -> Tensor:
        def keep(inputs: Tensor, outputs: Tensor) -> None:
            tape = self._product_tape(module)
            columns = functional.unfold(
                _padded(module, inputs),
                cast("tuple[int, int]", module.kernel_size),
                dilation=cast("tuple[int, int]", module.dilation),
                stride=cast("tuple[int, int]", module.stride),
            )
            tape.inputs.append(columns.transpose(1, 2))
            tape.outputs.append(outputs.flatten(2).transpose(1, 2))

        return cast("Tensor", _Conv2d.apply(x, module.weight, module.bias, module, keep))

    def _layer_norm(self, module: nn.LayerNorm, x: Tensor) -> Tensor:
        shape = cast("list[int]", list(module.normalized_shape))
        normalized = functional.layer_norm(x, shape, None, None, module.eps)
        return self._affine(module, normalized, module.weight, module.bias)

    def _layer_scale(self, module: LayerScale, x: Tensor) -> Tensor:
        return self._affine(module, x, module.gamma, None)

    def _affine(
        self, module: nn.Module, x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None
    ) -> Tensor:
        def keep(inputs: Tensor, outputs: Tensor) -> None:
            tape = cast("DirectTape", self._tapes.setdefault(module, DirectTape()))
            by_image = (self._num_images, -1, *weight.shape)
            if weight.requires_grad:
                tape.add(weight, (inputs * outputs).reshape(by_image).sum(1))
            if bias is not None and bias.requires_grad:
                tape.add(bias, outputs.reshape(by_image).sum(1))

        return cast("Tensor", _Affine.apply(x, weight, bias, keep))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.keep = keep
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        x, weight = ctx.saved_tensors
        ctx.keep(x, outputs[0])
        return (outputs[0] @ weight if ctx.needs_input_grad[0] else None), None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Conv2d, keep: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.module, ctx.keep = module, keep
        return module._conv_forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        x, weight = ctx.saved_tensors
        ctx.keep(x, outputs[0].contiguous())
        below = None
        if ctx.needs_input_grad[0]:
            with torch.enable_grad():
                probe = x.detach().requires_grad_()
                y = ctx.module._conv_forward(probe, weight.detach(), None)
            (below,) = torch.autograd.grad(y, probe, outputs[0])
        return below, None, None, None, None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.keep = keep
        scaled = x * weight
        return scaled if bias is None else scaled.add_(bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        x, weight = ctx.saved_tensors
        ctx.keep(x, outputs[0])
        return (outputs[0] * weight if ctx.needs_input_grad[0] else None), None, None, None


def _computes(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether ``module`` computes what one of ``kinds`` does; a subclass may do anything."""
    return type(module).forward in {kind.forward for kind in kinds}


def _padded(module: nn.Conv2d, x: Tensor) -> Tensor:
    padding = cast("list[int]", module._reversed_padding_repeated_twice)
    return functional.pad(x, padding) if any(padding) else x


def _not_covered(name: str) -> UsageError:
    return UsageError(
        f"private training does not cover {name}: train less of the model (finetune=head) or "
        "choose another"
    )
