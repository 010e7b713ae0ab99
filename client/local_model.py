"""What a site trains: how the shared model is built, and what a round does with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from client import devices
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds
from common.config import AugmentationConfig
from common.errors import Refusal
from common.messages import Reason, Recipe


class ModelMismatch(Refusal):
    """The server's model is not the site's, or private training does not cover it."""

    code = Reason.model_mismatch.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a site trains a model with; nothing of it comes from the server.

    Attributes:
        cohort: training images (private).
        augmentation: how images are changed at random when they are used.
        memory_bytes: what one training step may take; no bound of the site's own if ``None``.
        pool: synthetic images to mix in.
        cache: folder for what a frozen backbone says of images.
        device: where the model is trained.
    """

    cohort: Cohort
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    memory_bytes: float | None = None
    pool: Cohort | None = None
    cache: Path | None = None
    device: torch.device = devices.CPU


class LocalTraining(Protocol):
    """A warm model, checked for one kind of recipe."""

    @property
    def model(self) -> nn.Module:
        """Whose trainable weights travel."""
        ...

    def train(
        self,
        cohort: Cohort,
        recipe: Recipe,
        seeds: RoundSeeds,
        shift: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Update the model in place by one round, each step shifted as `client.dp.drift` says."""
        ...


class LocalModel(Protocol):
    """How a site builds the shared model (public)."""

    def build(self) -> nn.Module:
        """A fresh model with its trainable weights marked."""
        ...

    def prepare(self, recipe: Recipe, around: Surroundings) -> LocalTraining:
        """A fresh model, with an engine where the recipe is private, tried on made-up patients.

        Raises:
            ModelMismatch: if private training does not cover it.
        """
        ...
