"""The study: where images and labels come from."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from common.config.check import require
from common.errors import UsageError


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
            require(name in self.groups, "data.columns.bins", name, "not in data.columns.groups")
            sound = all(isinstance(edge, int | float) and math.isfinite(edge) for edge in edges)
            sound = sound and all(low < high for low, high in itertools.pairwise(edges))
            require(
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
        require(bool(self.separator), "data.labels.separator", "''", "must not be empty")
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
        require(1 <= self.depth <= 512, "data.volume.depth", self.depth, "must be 1 to 512")
        for name in ("slice_spacing_mm", "pixel_spacing_mm"):
            value = getattr(self, name)
            sound = value is None or 0.05 <= value <= 50
            require(sound, f"data.volume.{name}", value, "must be 0.05 to 50")
        if (self.slice_spacing_mm is None) != (self.pixel_spacing_mm is None):
            raise UsageError(
                "data.volume.slice_spacing_mm and data.volume.pixel_spacing_mm: set both or none"
            )
        center, width = self.window_center, self.window_width
        sound = -10_000 <= center <= 10_000
        require(sound, "data.volume.window_center", center, "must be -10000 to 10000")
        sound = 1 <= width <= 20_000
        require(sound, "data.volume.window_width", width, "must be 1 to 20000")


@dataclass(kw_only=True)
class PhantomConfig:
    """How many phantoms are drawn, and how they look (sizes in pixels).

    They come from ``num_hospitals``; from ``federation.num_sites`` if it is not set.
    """

    num_train_per_site: int = 200
    num_val: int = 100
    num_test: int = 200
    size: int = 64
    seed: int = 7
    num_hospitals: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_train_per_site", "num_val", "num_test"):
            value = getattr(self, name)
            require(value >= 2, f"data.phantom.{name}", value, "must be at least 2")
        hospitals = self.num_hospitals
        sound = hospitals is None or hospitals >= 1
        require(sound, "data.phantom.num_hospitals", hospitals, "must be at least 1")
        require(self.seed >= 0, "data.phantom.seed", self.seed, "must be at least 0")
        require(16 <= self.size <= 512, "data.phantom.size", self.size, "must be 16 to 512")


@dataclass(kw_only=True)
class DataConfig:
    """The study, and how an image becomes a square array of ``image_size`` pixels.

    ``table`` lies in ``root`` (CSV, or Parquet if so named), images below ``image_folder`` there.
    In a ``dicom_folder`` rows of the table are matched with files through ``join``: a DICOM
    keyword, or ``path``; ``columns.image`` then holds its value. So are folders of slices in
    ``ct_volumes`` with a keyword. ``paper_crops`` gives
    ``cbis_ddsm`` the oddities of the published crops. ``window`` names the window of DICOM images
    (their first without it); ``side`` mirrors those of the other side of the body. ``split_seed``
    draws validation and test patients where the study does not name them, ``seed`` if it is not
    set. Phantoms are kept in ``root`` if it is set, else in the folder of the run.
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
    split_seed: int | None = None
    public: str | None = None
    cache_dir: Path | None = None
    label_rules: list[str] = field(default_factory=list[str])
    phantom: PhantomConfig = field(default_factory=PhantomConfig)

    def __post_init__(self) -> None:
        require(
            8 <= self.image_size <= 1024, "data.image_size", self.image_size, "must be 8 to 1024"
        )
        for name in ("val_fraction", "test_fraction"):
            value = getattr(self, name)
            require(0 < value < 0.5, f"data.{name}", value, "must lie between 0 and 0.5")
        sound = self.split_seed is None or self.split_seed >= 0
        require(sound, "data.split_seed", self.split_seed, "must be at least 0")
        if self.columns.patient is None and not self.public:
            raise UsageError(
                "data.columns.patient=null: only a public study may do without patients; say in "
                "data.public why it is"
            )
        if self.kind is not StudyKind.phantom and self.root is None:
            raise UsageError("data.root is not set: name the folder of the study, data.root=FOLDER")
