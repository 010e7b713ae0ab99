"""Convolutions in any number of dimensions, and each image's gradient of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

_Sizes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """How a convolution's weight meets its input; one number for each spatial dimension."""

    stride: _Sizes
    padding: _Sizes
    dilation: _Sizes
    groups: int
    transposed: bool = False
    output_padding: _Sizes = ()

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, ...) → (N, O, ...)."""
        return torch.convolution(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
        )

    def input_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of x from that of the output."""
        return self._backward(g, x, weight, self.groups, mask=[True, False, False])[0]

    def image_gradients(self, g: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """(N, *shape) gradient of the weight from each image.

        A convolution of N times as many groups, one for each image and group, has the gradients of
        all images side by side (Rochette et al. 2019, arXiv 1912.06015).
        """
        num_images = len(x)
        side_by_side = x.reshape(1, num_images * x.shape[1], *x.shape[2:])
        g = g.reshape(1, num_images * g.shape[1], *g.shape[2:])
        weight = x.new_empty(1).expand(num_images * shape[0], *shape[1:])
        mask = [False, True, False]
        groups = num_images * self.groups
        return self._backward(g, side_by_side, weight, groups, mask=mask)[1].view(-1, *shape)

    def factors(self, g: Tensor, x: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Factors (N, T, d) and (N, T, p) of each image's gradient, as for a linear layer.

        Raises:
            ValueError: with more than one group.
        """
        if self.groups != 1:
            raise ValueError(f"groups={self.groups}: must be 1")
        windowed, whole = (g, x) if self.transposed else (x, g)
        columns = self._windows(windowed, shape[2:], whole.shape[2:])
        return columns, whole.flatten(2).transpose(1, 2)

    def prefers_factors(self, num_outputs: int, shape: torch.Size, keep: float) -> bool:
        """Whether a gradient is too large to be kept, or its windows are as cheap as the input.

        Args:
            num_outputs: positions T of one image.
            shape: of the weight.
            keep: how many times the memory of its factors a gradient may take.
        """
        if self.groups != 1:
            return False
        p, d = shape[0], math.prod(shape[1:])
        apart = self.stride == tuple(shape[2:]) and not self.transposed
        return apart or p * d > keep * num_outputs * (p + d)

    def _backward(
        self, g: Tensor, x: Tensor, weight: Tensor, groups: int, *, mask: list[bool]
    ) -> tuple[Tensor, Tensor]:
        gradients = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            groups,
            mask,
        )
        return cast("tuple[Tensor, Tensor]", gradients[:2])

    def _windows(self, x: Tensor, kernel: Sequence[int], counts: Sequence[int]) -> Tensor:
        """(N, C, ...) → (N, T, C prod(kernel)): what the kernel sees at each of T positions."""
        if any(self.padding):
            sides = [side for size in reversed(self.padding) for side in (size, size)]
            x = functional.pad(x, sides)
        x = x.contiguous()
        steps = x.stride()[2:]
        windows = x.as_strided(
            (*x.shape[:2], *counts, *kernel),
            (
                *x.stride()[:2],
                *(step * stride for step, stride in zip(steps, self.stride, strict=True)),
                *(step * dilation for step, dilation in zip(steps, self.dilation, strict=True)),
            ),
        )
        dims = len(counts)
        order = (0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
        return windows.permute(order).reshape(len(x), math.prod(counts), -1)
