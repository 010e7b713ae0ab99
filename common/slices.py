"""A model of volumes made of a model of slices."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SliceAttention(nn.Module):
    """Looks at every slice with the same transformer, then decides how much each one counts.

    Attention pooling after Ilse et al. 2018 (arXiv 1802.04712), with a learned embedding of the
    place of a slice, so that order matters. All of it is made of operations that private training
    covers; no slice of one volume meets a slice of another.

    Args:
        backbone: (N, 1, S, S) → (N, F).
        num_features: F.
        depth: slices of a volume, D.
        num_classes: C.
    """

    def __init__(
        self, backbone: nn.Module, *, num_features: int, depth: int, num_classes: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.slice_embed = nn.Parameter(torch.randn(1, depth, num_features) * 0.02)
        self.norm = nn.LayerNorm(num_features)
        self.score = nn.Linear(num_features, 1)
        self.head = nn.Linear(num_features, num_classes)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, 1, D, S, S) → logits (B, C)."""
        slices = volumes.transpose(1, 2).flatten(0, 1)  # (B D, 1, S, S)
        features = self.backbone(slices).unflatten(0, (len(volumes), -1))  # (B, D, F)
        features = self.norm(features + self.slice_embed)
        weights = self.score(features).softmax(dim=1)
        return self.head((weights * features).sum(1))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits, by timm's name for it."""
        return self.head
