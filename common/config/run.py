"""Everything that decides a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.config.check import require
from common.config.federation import FederationConfig, PartitionConfig, StrategyConfig
from common.config.model import FinetuneConfig, ModelConfig
from common.config.privacy import ClippingKind, EngineName, PrivacyConfig
from common.config.simulation import SimulationConfig
from common.config.study import DataConfig
from common.config.synthesis import AugmentConfig
from common.config.training import Precision, TrainingConfig
from common.errors import UsageError


@dataclass(kw_only=True)
class Config:
    """Everything that decides a run."""

    title: str = "demo"
    seed: int = 42
    run_dir: Path | None = None
    resume: Path | None = None
    data: DataConfig = field(default_factory=DataConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "must be at least 0")
        self._check_engine()

    def _check_engine(self) -> None:
        """Opacus's engines are references: they do less than ours."""
        engine, precision = self.privacy.engine, self.training.precision
        if engine is EngineName.bookkeeping or not self.privacy.private:
            return
        beyond = {
            f"training.precision={precision.value}": precision is not Precision.fp32,
            "privacy.clipping=per_layer": self.privacy.clipping is ClippingKind.per_layer,
            "training.memory_gb": self.training.memory_gb is not None,
        }
        if engine is EngineName.opacus_ghost:
            images = self.privacy.images_per_patient * self.training.augmentation_multiplicity
            beyond["more than one image or view of a patient"] = images > 1
        for what, asked in beyond.items():
            if asked:
                raise UsageError(
                    f"privacy.engine={engine.value}: does not do {what}; use "
                    "privacy.engine=bookkeeping"
                )
