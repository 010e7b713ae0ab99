"""The local optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from common.config.check import require, require_positive

LARGEST_RATE = 1e6


class Precision(Enum):
    """Of forward and backward passes; norms, sums, noise and weights are always 32 bits."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(kw_only=True)
class AugmentationConfig:
    """Random changes of a training image, drawn anew whenever it is used; all off by default.

    ``flip_*`` turn an image around with chance one half (``flip_slices`` reverses a volume).
    Rotation is in degrees, shift in shares of the side, scale and contrast as largest relative
    changes, brightness as the largest change in [0, 1]; each is drawn evenly from both directions.
    """

    flip_horizontal: bool = False
    flip_vertical: bool = False
    flip_slices: bool = False
    rotation_degrees: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        bounds = {
            "rotation_degrees": 180.0,
            "shift": 0.5,
            "scale": 0.5,
            "brightness": 1.0,
            "contrast": 0.9,
        }
        for name, bound in bounds.items():
            value = getattr(self, name)
            remedy = f"must be 0 to {bound:g}"
            require(0 <= value <= bound, f"training.augmentation.{name}", value, remedy)


@dataclass(kw_only=True)
class TrainingConfig:
    """The local optimiser.

    ``learning_rate`` is, if it is not set, 1e-3; but 2 for sgd on the head of a classifier, where
    each patient's gradient is clipped, and 0.2 there without privacy, where gradients are whole.
    ``momentum`` is of sgd: 0.9 if it is not set, and 0 with strategy=scaffold, which takes no other
    value. ``physical_batch`` bounds the images held in memory at once; with ``memory_gb`` a site
    also keeps each step within that many GB. Each image enters a step as
    ``augmentation_multiplicity`` randomly changed views, together one patient's gradient.
    """

    optimizer: str = "adam"
    learning_rate: float | None = None
    momentum: float | None = None
    physical_batch: int = 32
    memory_gb: float | None = None
    precision: Precision = Precision.fp32
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    augmentation_multiplicity: int = 1

    def __post_init__(self) -> None:
        require_positive("training.learning_rate", self.learning_rate)
        require(
            (self.learning_rate or 0.0) <= LARGEST_RATE,
            "training.learning_rate",
            self.learning_rate,
            f"must be at most {LARGEST_RATE:g}",
        )
        require_positive("training.memory_gb", self.memory_gb)
        require(
            self.optimizer in {"sgd", "adam"}, "training.optimizer", self.optimizer, "sgd or adam"
        )
        momentum = self.momentum or 0.0
        require(0 <= momentum < 1, "training.momentum", momentum, "must be at least 0 and below 1")
        require(
            self.optimizer == "sgd" or momentum == 0,
            "training.momentum",
            momentum,
            f"{self.optimizer} has means of its own; set training.optimizer=sgd",
        )
        require(
            self.physical_batch >= 1, "training.physical_batch", self.physical_batch, "at least 1"
        )
        views = self.augmentation_multiplicity
        require(views >= 1, "training.augmentation_multiplicity", views, "must be at least 1")
