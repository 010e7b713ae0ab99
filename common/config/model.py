"""The model, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from common.config.check import require
from common.errors import UsageError


@dataclass(kw_only=True)
class ModelConfig:
    """A timm architecture; ``patch_size`` and ``window_size`` in pixels and patches.

    ``weights`` are those of the whole model, ``start`` some of them that a run has trained, laid
    over it; a file that carries its provenance is charged to the patients behind it.
    """

    name: str = "vit_tiny"
    architecture: str = "vit_tiny_patch16_224"
    patch_size: int | None = 16
    window_size: int | None = None
    weights: Path | None = None
    weights_public: str | None = None
    start: Path | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and not self.weights_public:
            raise UsageError(
                "model.weights_public is not set: say in a few words why the initial weights are "
                "public (or trained without the sites' patients)"
            )


class FinetuneMode(Enum):
    """Which weights are trained (and travel)."""

    all = "all"
    head = "head"
    bitfit = "bitfit"
    lora = "lora"
    last_blocks = "last_blocks"


@dataclass(kw_only=True)
class FinetuneConfig:
    """Which weights are trained, besides the head.

    ``bitfit`` trains all biases, ``lora`` low-rank additions (of ``rank``) to the projections of
    attention, ``last_blocks`` the last ``blocks`` blocks. With ``center`` the last layer gets
    features of one length of which the mean over images without content was subtracted.
    """

    mode: FinetuneMode = FinetuneMode.all
    rank: int = 4
    blocks: int = 2
    center: bool = False

    def __post_init__(self) -> None:
        for name in ("rank", "blocks"):
            value = getattr(self, name)
            require(value >= 1, f"finetune.{name}", value, "must be at least 1")
