"""Everything that decides a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from common.config.check import require
from common.config.federation import FederationConfig, LateReplies, PartitionConfig
from common.config.model import FinetuneConfig, ModelConfig
from common.config.privacy import ClippingKind, EngineName, PrivacyConfig
from common.config.simulation import SimulationConfig
from common.config.strategy import Personal, StrategyConfig, StrategyName
from common.config.study import DataConfig
from common.config.synthesis import AugmentConfig, AugmentMode, GanConfig
from common.config.tracking import TrackingConfig
from common.config.training import Precision, TrainingConfig
from common.errors import UsageError


class Job(Enum):
    """What a run trains: a classifier, or a generator of synthetic images."""

    classify = "classify"
    synthesize = "synthesize"


@dataclass(kw_only=True)
class Config:
    """Everything that decides a run; ``job`` is set by the command."""

    job: Job = Job.classify
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
    gan: GanConfig = field(default_factory=GanConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "must be at least 0")
        self._check_engine()
        self._check_strategy()

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

    def _check_strategy(self) -> None:
        """What a strategy needs of the federation and of the local optimiser."""
        strategy, federation = self.strategy, self.federation
        name = strategy.name
        if federation.late_replies is LateReplies.use and not name.is_the_mean:
            raise UsageError(
                f"federation.late_replies=use: an update of the round before has a place in a mean "
                f"of models (fedavg, fedprox), not in {name.value}; use discard"
            )
        if name is StrategyName.krum and federation.min_sites < 2 * strategy.num_malicious + 3:
            raise UsageError(
                f"strategy=krum: with strategy.num_malicious={strategy.num_malicious} a round "
                f"needs federation.min_sites={2 * strategy.num_malicious + 3} or more"
            )
        if self.job is Job.synthesize and (
            name in {StrategyName.fedprox, StrategyName.scaffold}
            or strategy.personal is not Personal.none
        ):
            raise UsageError(
                f"strategy={name.value} strategy.personal={strategy.personal.value}: a generator "
                "is trained without terms against drift and without layers of the hospitals' own"
            )
        trains = self.job is Job.classify and self.augment.mode is not AugmentMode.pretrain
        if strategy.local_steps_after and not trains:
            raise UsageError(
                f"strategy.local_steps_after={strategy.local_steps_after}: no hospital trains a "
                "classifier in this run, so there is none to train on; set it to 0"
            )
        plain = self.training.optimizer == "sgd" and not self.training.momentum
        if name is StrategyName.scaffold and not plain:
            raise UsageError(
                "strategy=scaffold: its corrections are of gradient descent without momentum; set "
                "training.optimizer=sgd training.momentum=0"
            )
