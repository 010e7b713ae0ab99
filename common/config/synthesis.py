"""Synthetic images: how hospitals use them, and how a generator of them is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

from common.config.check import require, require_positive
from common.config.model import FinetuneMode
from common.errors import UsageError
from common.generators.settings import GanSettings, MomentSettings


class AugmentMode(Enum):
    """What synthetic images are used for."""

    none = "none"
    mix = "mix"
    pretrain = "pretrain"
    pretrain_then_dp_head = "pretrain_then_dp_head"
    pretrain_then_dp_all = "pretrain_then_dp_all"


@dataclass(kw_only=True)
class AugmentConfig:
    """What synthetic images are used for, and which they are.

    ``mix`` adds ``ratio`` synthetic images for each expected patient of a step; they are never
    patients: they need no noise and add none. With ``counted_as_patients`` they are drawn and
    counted as the patients are (as Osuala et al. 2024 do): each patient is then drawn more rarely.
    ``pretrain`` trains the model on synthetic images and never asks a hospital;
    ``pretrain_then_dp_head`` and ``pretrain_then_dp_all`` go on with the hospitals' patients and
    train the head, or everything. Pretraining takes ``epochs`` passes and trains what ``layers``
    says, a value of ``finetune.mode``.

    ``pool`` is a folder of images with their ``metadata.csv``; how they were made stands in its
    ``provenance.json``, or in the file that ``provenance`` names.
    """

    mode: AugmentMode = AugmentMode.none
    pool: Path | None = None
    provenance: Path | None = None
    image_column: str = "image"
    label_column: str = "label"
    ratio: float = 1.0
    counted_as_patients: bool = False
    layers: FinetuneMode = FinetuneMode.all
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require_positive("augment.ratio", self.ratio)
        require_positive("augment.learning_rate", self.learning_rate)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"augment.{name}", value, "must be at least 1")
        if self.mode is not AugmentMode.none and self.pool is None:
            raise UsageError(
                "augment.pool is not set: name the folder of the synthetic images, "
                "augment.pool=FOLDER"
            )
        if self.counted_as_patients and self.mode is not AugmentMode.mix:
            raise UsageError("augment.counted_as_patients is for augment=mix only")

    @property
    def pretrains(self) -> bool:
        """Whether the model sees synthetic images before any patient."""
        return self.mode not in {AugmentMode.none, AugmentMode.mix}


class GeneratorKind(Enum):
    """What makes the images."""

    dcgan = "dcgan"
    moments = "moments"


class GeneratorSharing(Enum):
    """What becomes of the hospitals' generators."""

    average = "average"
    pool = "pool"


@dataclass(kw_only=True)
class GanConfig:
    """The generator that ``fedward synthesize`` trains, and how many images it then makes.

    ``private=false`` trains it without privacy; its images then cost the hospitals' patients an
    infinite epsilon. The hospitals' generators are averaged after each round (``sharing=average``),
    or each hospital trains its own, and images of all are put together (``sharing=pool``).
    ``dcgan`` is the conditional DCGAN of Osuala et al. 2024, ``width`` a factor of its channel
    numbers; ``moments`` releases the mean and spread of each class in public features, once
    (``detail`` and ``texture`` say which). The other settings are those of
    `common.generators.settings.GanSettings`.
    """

    kind: GeneratorKind = GeneratorKind.dcgan
    private: bool = True
    sharing: GeneratorSharing = GeneratorSharing.average
    width: float = 0.25
    loss: str = "bce"
    steps_per_generator_step: int = 1
    generator_learning_rate: float = 1e-4
    generator_batch: int = 32
    ema: float = 0.0
    detail: int = 4
    texture: int = 2
    num_images: int = 3000
    assess: bool = True

    def __post_init__(self) -> None:
        require(self.num_images >= 1, "gan.num_images", self.num_images, "must be at least 1")
        try:
            self._of_gan()
            self._of_moments()
        except ValueError as error:
            raise UsageError(f"gan.{error}") from error

    def settings(self) -> GanSettings | MomentSettings:
        """How the generator is built and trained."""
        return self._of_moments() if self.kind is GeneratorKind.moments else self._of_gan()

    def _of_gan(self) -> GanSettings:
        return GanSettings(**{item.name: getattr(self, item.name) for item in fields(GanSettings)})

    def _of_moments(self) -> MomentSettings:
        return MomentSettings(detail=self.detail, texture=self.texture)
