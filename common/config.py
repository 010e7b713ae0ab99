"""The configuration of a run, as plain dataclasses.

`configs.load` fills them from Hydra's groups; nothing after that knows about Hydra. Every field
is public: no value here may be computed from patients' data.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

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


class EngineName(Enum):
    """What computes clipped gradients; the ones of Opacus are references."""

    bookkeeping = "bookkeeping"
    opacus_hooks = "opacus_hooks"
    opacus_functorch = "opacus_functorch"
    opacus_ghost = "opacus_ghost"


class ClippingKind(Enum):
    """How one patient's gradient is bounded."""

    flat = "flat"
    automatic = "automatic"
    per_layer = "per_layer"


class Precision(Enum):
    """Of forward and backward passes; norms, sums, noise and weights are always 32 bits."""

    fp32 = "fp32"
    bf16 = "bf16"


class AccountantName(Enum):
    """Which accountant turns events into epsilon."""

    pld = "pld"
    rdp = "rdp"


class StudyKind(Enum):
    """Where images and labels come from."""

    phantom = "phantom"
    table = "table"
    dicom_folder = "dicom_folder"
    cbis_ddsm = "cbis_ddsm"
    chest_xray = "chest_xray"
    ct_volumes = "ct_volumes"


class TaskKind(Enum):
    """What a label is: yes or no, one of several classes, or several findings side by side."""

    binary = "binary"
    multiclass = "multiclass"
    multilabel = "multilabel"


class Side(Enum):
    """A side of the body, as DICOM writes it."""

    L = "L"
    R = "R"


@dataclass(kw_only=True)
class ColumnsConfig:
    """Names of the columns of a study's table; ``None`` where the table has no such column.

    ``groups`` names what results are broken down by (``{sex: sex, age: age}``: group to column);
    a group in ``bins`` is a number, cut at these edges (``{age: [0, 30, 60]}``: 0-30, 30-60 and
    what lies outside). ``site_names`` renames values of the site column, two to the same name to
    merge them. Rows with one of the listed values in a column of ``exclude`` are left out.
    In a study of DICOM files a column may also be a DICOM keyword, such as ``Manufacturer``.
    """

    image: str = "image"
    patient: str | None = "patient"
    label: str = "label"
    split: str | None = None
    site: str | None = None
    groups: dict[str, str] = field(default_factory=dict[str, str])
    bins: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    site_names: dict[str, str] = field(default_factory=dict[str, str])
    exclude: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def __post_init__(self) -> None:
        for name, edges in self.bins.items():
            _require(name in self.groups, "data.columns.bins", name, "not in data.columns.groups")
            sound = all(isinstance(edge, int | float) and math.isfinite(edge) for edge in edges)
            sound = sound and all(low < high for low, high in itertools.pairwise(edges))
            _require(
                sound and bool(edges),
                f"data.columns.bins.{name}",
                edges,
                "must be finite numbers that rise",
            )


@dataclass(kw_only=True)
class LabelsConfig:
    """What the label column holds.

    Binary: 0 or 1, 1 being the finding ``names[0]`` (the column's name if there is none).
    Multi-class: one of ``names``, numbered in their order. Multi-label: several of ``names`` with
    ``separator`` between them, or, with ``columns``, one column of 0, 1 and empty (unknown) for
    each finding. ``values`` says what other cells mean, such as ``{MALIGNANT: "1", BENIGN: "0"}``,
    ``{"No Finding": ""}`` or, in ``columns``, ``{"-1": unknown}``.
    """

    kind: TaskKind = TaskKind.binary
    names: list[str] = field(default_factory=list[str])
    values: dict[str, str] = field(default_factory=dict[str, str])
    columns: list[str] = field(default_factory=list[str])
    separator: str = "|"

    def __post_init__(self) -> None:
        _require(bool(self.separator), "data.labels.separator", "''", "must not be empty")
        if self.columns and self.kind is not TaskKind.multilabel:
            raise UsageError("data.labels.columns is for data.labels.kind=multilabel only")
        if self.columns and self.names and len(self.columns) != len(self.names):
            raise UsageError(
                f"data.labels.names: {len(self.names)} names for {len(self.columns)} columns; give "
                "one name for each column, or none"
            )


@dataclass(kw_only=True)
class VolumeConfig:
    """How a CT volume becomes ``depth`` slices of ``data.image_size`` pixels in [0, 1].

    With both spacings voxels get that size in mm, and the volume is cropped or padded with the
    darkest value around its centre; without, it is stretched. The window, in HU, becomes [0, 1].
    """

    depth: int = 16
    slice_spacing_mm: float | None = None
    pixel_spacing_mm: float | None = None
    window_center: float = 40.0
    window_width: float = 400.0

    def __post_init__(self) -> None:
        _require(1 <= self.depth <= 512, "data.volume.depth", self.depth, "must be 1 to 512")
        for name in ("slice_spacing_mm", "pixel_spacing_mm"):
            value = getattr(self, name)
            sound = value is None or 0.05 <= value <= 50
            _require(sound, f"data.volume.{name}", value, "must be 0.05 to 50")
        if (self.slice_spacing_mm is None) != (self.pixel_spacing_mm is None):
            raise UsageError(
                "data.volume.slice_spacing_mm and data.volume.pixel_spacing_mm: set both or none"
            )
        center, width = self.window_center, self.window_width
        sound = -10_000 <= center <= 10_000
        _require(sound, "data.volume.window_center", center, "must be -10000 to 10000")
        sound = 1 <= width <= 20_000
        _require(sound, "data.volume.window_width", width, "must be 1 to 20000")


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
    """The study, and how an image becomes a square array of ``image_size`` pixels.

    ``table`` lies in ``root`` (CSV, or Parquet if so named), images below ``image_folder`` there.
    In a ``dicom_folder`` rows of the table are matched with files through ``join``: a DICOM
    keyword, or ``path``; ``columns.image`` then holds its value. So are folders of slices in
    ``ct_volumes`` with a keyword. ``paper_crops`` gives
    ``cbis_ddsm`` the oddities of the published crops. ``window`` names the window of DICOM images
    (their first without it); ``side`` mirrors those of the other side of the body.
    """

    kind: StudyKind = StudyKind.phantom
    name: str = "phantom"
    root: Path | None = None
    table: str = "metadata.csv"
    image_folder: str = "."
    join: str = "path"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    paper_crops: bool = False
    window: str | None = None
    side: Side | None = None
    image_size: int = 64
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    public: str | None = None
    cache_dir: Path | None = None
    label_rules: list[str] = field(default_factory=list[str])
    phantom: PhantomConfig = field(default_factory=PhantomConfig)

    def __post_init__(self) -> None:
        _require(
            8 <= self.image_size <= 1024, "data.image_size", self.image_size, "must be 8 to 1024"
        )
        for name in ("val_fraction", "test_fraction"):
            value = getattr(self, name)
            _require(0 < value < 0.5, f"data.{name}", value, "must lie between 0 and 0.5")
        if self.columns.patient is None and not self.public:
            raise UsageError(
                "data.columns.patient=null: only a public study may do without patients; say in "
                "data.public why it is"
            )
        if self.kind is not StudyKind.phantom and self.root is None:
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
    clipping: ClippingKind = ClippingKind.flat
    images_per_patient: int = 4
    engine: EngineName = EngineName.bookkeeping

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


class PartitionKind(Enum):
    """How a study's training patients are divided among simulated hospitals."""

    auto = "auto"
    natural = "natural"
    equal = "equal"
    size_skew = "size_skew"
    label_skew = "label_skew"
    feature_skew = "feature_skew"


@dataclass(kw_only=True)
class PartitionConfig:
    """Who holds which patient; always whole patients, each at exactly one hospital.

    ``auto`` is ``natural`` where the study names ``federation.num_sites`` hospitals, else
    ``equal``. ``by`` names what ``natural`` and ``feature_skew`` go by: the study's site column
    (``site``) or one of its groups, such as ``manufacturer`` or ``sex``. ``alpha`` is the
    concentration of the Dirichlet shares of ``label_skew`` and ``feature_skew`` (small: each label
    or feature is at few hospitals), ``ratio`` how many times larger each hospital of ``size_skew``
    is than the next.
    """

    kind: PartitionKind = PartitionKind.auto
    by: str | None = None
    alpha: float = 0.5
    ratio: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("partition.alpha", self.alpha)
        _require(
            math.isfinite(self.ratio) and self.ratio >= 1, "partition.ratio", self.ratio, "from 1"
        )
        if self.kind is PartitionKind.feature_skew and not self.by:
            raise UsageError(
                "partition.by is not set: name a group of the study, such as partition.by=sex"
            )


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
    bitfit = "bitfit"
    lora = "lora"
    last_blocks = "last_blocks"


@dataclass(kw_only=True)
class FinetuneConfig:
    """Which weights are trained, besides the head.

    ``bitfit`` trains all biases, ``lora`` low-rank additions (of ``rank``) to the projections of
    attention, ``last_blocks`` the last ``blocks`` blocks.
    """

    mode: FinetuneMode = FinetuneMode.all
    rank: int = 4
    blocks: int = 2

    def __post_init__(self) -> None:
        for name in ("rank", "blocks"):
            value = getattr(self, name)
            _require(value >= 1, f"finetune.{name}", value, "must be at least 1")


class AugmentMode(Enum):
    """Synthetic augmentation at the site."""

    none = "none"


@dataclass(kw_only=True)
class AugmentConfig:
    """Synthetic augmentation at the site."""

    mode: AugmentMode = AugmentMode.none


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
            _require(0 <= value <= bound, f"training.augmentation.{name}", value, remedy)


@dataclass(kw_only=True)
class TrainingConfig:
    """The local optimiser.

    ``physical_batch`` bounds the images held in memory at once; with ``memory_gb`` a site also
    keeps each step within that many GB. Each image enters a step as ``augmentation_multiplicity``
    randomly changed views, together one patient's gradient.
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    physical_batch: int = 32
    memory_gb: float | None = None
    precision: Precision = Precision.fp32
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    augmentation_multiplicity: int = 1

    def __post_init__(self) -> None:
        _require_positive("training.learning_rate", self.learning_rate)
        _require_positive("training.memory_gb", self.memory_gb)
        _require(
            self.optimizer in {"sgd", "adam"}, "training.optimizer", self.optimizer, "sgd or adam"
        )
        _require(
            self.physical_batch >= 1, "training.physical_batch", self.physical_batch, "at least 1"
        )
        views = self.augmentation_multiplicity
        _require(views >= 1, "training.augmentation_multiplicity", views, "must be at least 1")


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
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "must be at least 0")
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
