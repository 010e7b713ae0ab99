"""Everything that decides a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from common.config.check import require
from common.config.federation import FederationConfig, LateReplies, PartitionConfig, Trust
from common.config.model import FinetuneConfig, FinetuneMode, ModelConfig
from common.config.privacy import ClippingKind, EngineName, PrivacyConfig
from common.config.simulation import SimulationConfig
from common.config.strategy import Personal, StrategyConfig, StrategyName, Weighting
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
        if self.federation.trust is Trust.secure_aggregation:
            self._check_secure()

    @property
    def split_seed(self) -> int:
        """Draws validation and test patients: ``data.split_seed``, or the run's."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @property
    def partition_seed(self) -> int:
        """Draws who goes to which simulated hospital: ``partition.seed``, or the run's."""
        return self.seed if self.partition.seed is None else self.partition.seed

    @property
    def learning_rate(self) -> float:
        """Of the hospitals' optimiser."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        if self.training.optimizer == "sgd" and self.finetune.mode is FinetuneMode.head:
            return 2.0 if self.privacy.private else 0.2
        return 1e-3

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

    def _check_secure(self) -> None:
        """What a sum of one step's gradients can do: nobody sees an update of a single site."""
        strategy, federation = self.strategy, self.federation
        sums = {
            StrategyName.fedavg,
            StrategyName.fedavgm,
            StrategyName.fedadam,
            StrategyName.fedyogi,
        }
        beyond = {
            f"strategy={strategy.name.value} (it needs each hospital's update; use fedavg, "
            "fedavgm, fedadam or fedyogi)": strategy.name not in sums,
            "strategy.weighting=equal (a sum weighs patients)": (
                strategy.weighting is not Weighting.patients
            ),
            "strategy.site_dp (the server sees no hospital's update to bound)": (
                strategy.site_dp.noise_multiplier is not None
            ),
            f"strategy.personal={strategy.personal.value}": strategy.personal is not Personal.none,
            "strategy.local_steps_after": strategy.local_steps_after > 0,
            f"federation.steps_per_round={federation.steps_per_round} (a sum holds one step; set "
            "it to 1 and federation.rounds to the number of steps)": (
                federation.steps_per_round != 1
            ),
            "federation.late_replies=use": federation.late_replies is LateReplies.use,
            f"federation.sites_per_round={federation.sites_per_round} (the noise of a sum is "
            "shared among all hospitals)": federation.sites_per_round is not None,
            "privacy=none (there is no noise to share)": not self.privacy.private,
            "training.optimizer (set it to sgd, and choose a strategy)": (
                self.training.optimizer != "sgd"
            ),
            "synthetic images among the patients": self.augment.mode is AugmentMode.mix,
            "training a generator": self.job is not Job.classify,
        }
        for what, asked in beyond.items():
            if asked:
                raise UsageError(f"federation.trust=secure_aggregation: does not do {what}")

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
