"""How much of a patient's gradient enters a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

# Keeps a vanishing gradient from being stretched; the value of Bu et al. 2022, arXiv 2206.07136.
_STABILITY = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Clipping:
    """Bounds the L2 norm of what one patient adds to a sum.

    *Guarantees*: whatever the gradient, with every kind a patient changes the sum over all
    weights by at most ``max_grad_norm``. So each kind costs the same event.

    Attributes:
        kind: ``"flat"`` scales a gradient down to ``max_grad_norm`` if it is longer;
            ``"automatic"`` scales every gradient to about that length (AUTO-S); ``"per_layer"``
            clips each of L layers to ``max_grad_norm`` / sqrt(L) on its own.
        max_grad_norm: C.
    """

    kind: str
    max_grad_norm: float

    def factors(self, norms: Tensor) -> Tensor:
        """(P,) what to multiply each patient's gradient by, from the norms (P,)."""
        if self.kind == "automatic":
            return self.max_grad_norm / (norms + _STABILITY)
        return (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)

    def of_one_layer(self, num_layers: int) -> Clipping:
        """The clipping of one of ``num_layers`` layers that together keep the bound."""
        return Clipping(kind="flat", max_grad_norm=self.max_grad_norm / math.sqrt(num_layers))
