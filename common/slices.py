"""A model of volumes made of a model of slices."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlicePool(nn.Module):
    """Decides how much each slice of a volume counts, and classifies their weighted mean.

    Attention pooling after Ilse et al. 2018 (arXiv 1802.04712), with a learned embedding of the
    place of a slice, so that order matters.

    Args:
        num_features: F.
        depth: slices of a volume, D.
        num_classes: C.
    """

    def __init__(self, *, num_features: int, depth: int, num_classes: int) -> None:
        super().__init__()
        self.slice_embed = nn.Parameter(torch.randn(1, depth, num_features) * 0.02)
        self.norm = nn.LayerNorm(num_features)
        self.score = nn.Linear(num_features, 1)
        self.head = nn.Linear(num_features, num_classes)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, F) → logits (B, C)."""
        features = self.norm(features + self.slice_embed)
        weights = self.score(features).softmax(dim=1)
        return self.head((weights * features).sum(1))


class SliceAttention(nn.Module):
    """Looks at every slice with the same transformer, then decides how much each one counts.

    All of it is made of operations that private training covers; no slice of one volume meets a
    slice of another.

    Args:
        backbone: (N, 1, S, S) → (N, F).
        pool: (B, D, F) → logits (B, C).
    """

    def __init__(self, backbone: nn.Module, pool: SlicePool) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, 1, D, S, S) → logits (B, C)."""
        slices = volumes.transpose(1, 2).flatten(0, 1)  # (B D, 1, S, S)
        return self.pool(self.backbone(slices).unflatten(0, (len(volumes), -1)))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits, by timm's name for it."""
        return self.pool.head
