"""Terms against client drift, added to a step's gradient when it is already released.

They depend on weights and on what the server sent, all of which is public or was made of noisy
gradients: post-processing, so they are neither clipped nor noised and cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def correct(
    optimizer: Optimizer,
    model: nn.Module,
    *,
    proximal_mu: float = 0.0,
    shift: Mapping[str, Tensor] | None = None,
) -> None:
    """Let each step of ``optimizer`` follow its gradient plus these terms.

    Args:
        optimizer: steps of it are taken on gradients that have their noise.
        model: its weights, as they are now, are where the proximal term pulls to.
        proximal_mu: the term is mu (w - w_0) (FedProx; Li et al. 2020, arXiv 1812.06127).
        shift: c - c_i by name of weight (SCAFFOLD; Karimireddy et al. 2020, arXiv 1910.06378).
    """
    if not proximal_mu and not shift:
        return
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    added = {name: shift[name].to(p.device) for name, p in named if shift and name in shift}
    anchors = {name: p.detach().clone() for name, p in named} if proximal_mu else {}

    def add(*_: Any) -> None:
        with torch.no_grad():
            for name, parameter in named:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if proximal_mu:
                    gradient.add_(parameter.detach() - anchors[name], alpha=proximal_mu)
                if name in added:
                    gradient.add_(added[name])

    optimizer.register_step_pre_hook(add)
