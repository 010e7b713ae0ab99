"""The configuration of a run, as plain dataclasses.

`configs.load` fills them from Hydra's groups; nothing after that knows about Hydra. Every field
is public: no value here may be computed from patients' data.
"""

from __future__ import annotations

from common.config.device import DeviceName
from common.config.federation import (
    FederationConfig,
    LateReplies,
    PartitionConfig,
    PartitionKind,
    Trust,
)
from common.config.model import FinetuneConfig, FinetuneMode, ModelConfig
from common.config.privacy import (
    AccountantName,
    ClippingKind,
    EngineName,
    Mechanism,
    PrivacyConfig,
    TunedOn,
    Unit,
)
from common.config.run import Config, Job
from common.config.simulation import ClientResources, SimulationConfig
from common.config.strategy import (
    Personal,
    SiteDpConfig,
    StrategyConfig,
    StrategyName,
    Weighting,
)
from common.config.study import (
    ColumnsConfig,
    DataConfig,
    LabelsConfig,
    PhantomConfig,
    Side,
    StudyKind,
    TaskKind,
    VolumeConfig,
)
from common.config.synthesis import (
    AugmentConfig,
    AugmentMode,
    GanConfig,
    GeneratorKind,
    GeneratorSharing,
)
from common.config.tracking import TrackingConfig
from common.config.training import AugmentationConfig, Precision, TrainingConfig

__all__ = [
    "AccountantName",
    "AugmentConfig",
    "AugmentMode",
    "AugmentationConfig",
    "ClientResources",
    "ClippingKind",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "DeviceName",
    "EngineName",
    "FederationConfig",
    "FinetuneConfig",
    "FinetuneMode",
    "GanConfig",
    "GeneratorKind",
    "GeneratorSharing",
    "Job",
    "LabelsConfig",
    "LateReplies",
    "Mechanism",
    "ModelConfig",
    "PartitionConfig",
    "PartitionKind",
    "Personal",
    "PhantomConfig",
    "Precision",
    "PrivacyConfig",
    "Side",
    "SimulationConfig",
    "SiteDpConfig",
    "StrategyConfig",
    "StrategyName",
    "StudyKind",
    "TaskKind",
    "TrackingConfig",
    "TrainingConfig",
    "Trust",
    "TunedOn",
    "Unit",
    "VolumeConfig",
    "Weighting",
]
