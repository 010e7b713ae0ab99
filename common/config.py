"""The configuration of a run, as plain dataclasses.

`configs.load` fills them from Hydra's groups; nothing after that knows about Hydra. Every field
is public: no value here may be computed from patients' data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from common.errors import UsageError


def _require(condition: bool, name: str, value: object, remedy: str) -> None:
    if not condition:
        raise UsageError(f"{name}={value}: {remedy}")


def _require_positive(name: str, value: float | None) -> None:
    if value is not None:
        _require(math.isfinite(value) and value > 0, name, value, "must be a finite number above 0")


class Mechanism(Enum):
    """How a site's update is made private."""

    dp_sgd = "dp_sgd"
    none = "none"


class Unit(Enum):
    """Whose presence the guarantee hides."""

    patient = "patient"
    image = "image"


class AccountantName(Enum):
    """Which accountant turns events into epsilon."""

    pld = "pld"
    rdp = "rdp"


class StudyKind(Enum):
    """Where images and labels come from."""

    phantom = "phantom"
    table = "table"


@dataclass(kw_only=True)
class ColumnsConfig:
    """Names of the columns of a table study; ``None`` where the table has no such column."""

    image: str = "image"
    patient: str = "patient"
    label: str = "label"
    split: str | None = None
    site: str | None = None


@dataclass(kw_only=True)
class PhantomConfig:
    """How many phantoms are drawn, and how they look (sizes in pixels)."""

    num_train_per_site: int = 200
    num_val: int = 100
    num_test: int = 200
    size: int = 64
    seed: int = 7

    def __post_init__(self) -> None:
        for name in ("num_train_per_site", "num_val", "num_test"):
            value = getattr(self, name)
            _require(value >= 2, f"data.phantom.{name}", value, "must be at least 2")
        _require(self.seed >= 0, "data.phantom.seed", self.seed, "must be at least 0")
        _require(16 <= self.size <= 512, "data.phantom.size", self.size, "must be 16 to 512")


@dataclass(kw_only=True)
class DataConfig:
    """The study, and how an image becomes a square array of ``image_size`` pixels."""

    kind: StudyKind = StudyKind.phantom
    name: str = "phantom"
    root: Path | None = None
    table: str = "metadata.csv"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    image_size: int = 64
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    public: str | None = None
    phantom: PhantomConfig = field(default_factory=PhantomConfig)

    def __post_init__(self) -> None:
        _require(
            8 <= self.image_size <= 1024, "data.image_size", self.image_size, "must be 8 to 1024"
        )
        for name in ("val_fraction", "test_fraction"):
            value = getattr(self, name)
            _require(0 < value < 0.5, f"data.{name}", value, "must lie between 0 and 0.5")
        if self.kind is StudyKind.table and self.root is None:
            raise UsageError("data.root is not set: name the folder of the study, data.root=FOLDER")


@dataclass(kw_only=True)
class PrivacyConfig:
    """The recipe of private training.

    Exactly one of ``epsilon`` (a target: noise is calibrated for the planned rounds) and
    ``noise_multiplier`` (fixed noise: epsilon grows with the rounds) decides the noise.
    ``budget`` is each site's own cap, ``site_budgets`` that of single
    sites (``hospital-1:2.5``). Without
    either the cap is the target; with fixed noise there is no cap then.
    """

    mechanism: Mechanism = Mechanism.dp_sgd
    epsilon: float | None = 8.0
    noise_multiplier: float | None = None
    budget: float | None = None
    site_budgets: list[str] = field(default_factory=list[str])
    delta: float | None = None
    unit: Unit = Unit.patient
    accountant: AccountantName = AccountantName.pld
    sampling_rate: float = 0.25
    max_grad_norm: float = 1.0
    images_per_patient: int = 4

    def __post_init__(self) -> None:
        for name in ("epsilon", "noise_multiplier", "budget", "max_grad_norm"):
            _require_positive(f"privacy.{name}", getattr(self, name))
        for site, budget in self.caps().items():
            _require_positive(f"privacy.site_budgets.{site}", budget)
        if self.delta is not None:
            _require(0 < self.delta < 1, "privacy.delta", self.delta, "must lie between 0 and 1")
        _require(
            0 < self.sampling_rate <= 1,
            "privacy.sampling_rate",
            self.sampling_rate,
            "must be above 0 and at most 1",
        )
        _require(
            self.images_per_patient >= 1,
            "privacy.images_per_patient",
            self.images_per_patient,
            "must be at least 1",
        )
        if self.private and self.epsilon is None and self.noise_multiplier is None:
            raise UsageError("privacy.epsilon and privacy.noise_multiplier are both unset: set one")

    @property
    def epsilon_target(self) -> float | None:
        """What the noise is calibrated for; ``None`` without privacy or with fixed noise."""
        return self.epsilon if self.private and self.noise_multiplier is None else None

    def caps(self) -> dict[str, float]:
        """``site_budgets`` by site name.

        >>> PrivacyConfig(site_budgets=["hospital-1:2.5"]).caps()
        {'hospital-1': 2.5}
        """
        caps: dict[str, float] = {}
        for entry in self.site_budgets:
            site, _, cap = entry.rpartition(":")
            try:
                caps[site] = float(cap)
            except ValueError:
                site = ""
            _require(bool(site), "privacy.site_budgets", entry, "must read SITE:EPSILON")
        return caps

    def budget_of(self, site: str) -> float:
        """A site's cap on epsilon; infinite where nothing bounds it."""
        if not self.private:
            return math.inf
        for cap in (self.caps().get(site), self.budget, self.epsilon_target):
            if cap is not None:
                return cap
        return math.inf

    @property
    def private(self) -> bool:
        """Whether updates carry a differential-privacy guarantee."""
        return self.mechanism is Mechanism.dp_sgd


@dataclass(kw_only=True)
class FederationConfig:
    """Who takes part and for how long; ``timeout_seconds`` bounds the wait for one round."""

    num_sites: int = 3
    rounds: int = 8
    steps_per_round: int = 5
    timeout_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("num_sites", "rounds", "steps_per_round"):
            value = getattr(self, name)
            _require(value >= 1, f"federation.{name}", value, "must be at least 1")
        _require_positive("federation.timeout_seconds", self.timeout_seconds)


class StrategyName(Enum):
    """How the server turns updates into the next model (Flower's classes)."""

    fedavg = "fedavg"


@dataclass(kw_only=True)
class StrategyConfig:
    """Aggregation; sites weigh by their number of patients, never by images or classes."""

    name: StrategyName = StrategyName.fedavg


@dataclass(kw_only=True)
class ModelConfig:
    """A timm architecture; ``patch_size`` and ``window_size`` in pixels and patches."""

    name: str = "vit_tiny"
    architecture: str = "vit_tiny_patch16_224"
    patch_size: int | None = 16
    window_size: int | None = None
    weights: Path | None = None
    weights_public: str | None = None

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


@dataclass(kw_only=True)
class FinetuneConfig:
    """Which weights are trained."""

    mode: FinetuneMode = FinetuneMode.all


class AugmentMode(Enum):
    """Synthetic augmentation at the site."""

    none = "none"


@dataclass(kw_only=True)
class AugmentConfig:
    """Synthetic augmentation at the site."""

    mode: AugmentMode = AugmentMode.none


@dataclass(kw_only=True)
class TrainingConfig:
    """The local optimiser; ``physical_batch`` bounds the images held in memory at once."""

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    physical_batch: int = 32

    def __post_init__(self) -> None:
        _require_positive("training.learning_rate", self.learning_rate)
        _require(
            self.optimizer in {"sgd", "adam"}, "training.optimizer", self.optimizer, "sgd or adam"
        )
        _require(
            self.physical_batch >= 1, "training.physical_batch", self.physical_batch, "at least 1"
        )


@dataclass(kw_only=True)
class SimulationConfig:
    """What each simulated hospital may use of this machine, and where its ledgers live.

    With ``ledger_dir`` a hospital's ledgers are in ``ledger_dir/SITE`` and outlive the run, so that
    a later run on the same patients starts with what was spent; without it each run has its own.
    """

    cpus_per_site: float = 1.0
    gpus_per_site: float = 0.0
    ledger_dir: Path | None = None

    def __post_init__(self) -> None:
        _require_positive("simulation.cpus_per_site", self.cpus_per_site)
        _require(
            self.gpus_per_site >= 0, "simulation.gpus_per_site", self.gpus_per_site, "at least 0"
        )


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
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "must be at least 0")
