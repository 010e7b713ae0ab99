"""A folder of single CT slices as one volume."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.dicom import read_hounsfield, read_tags
from client.data.volume import Volume, check_voxels
from common.errors import DataError

_MAX_FILES = 4096
_TAGS = (
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImageType",
)
_UNEVEN = 0.1  # largest deviation of a step between slices, in steps

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Slice:
    """Where one slice lies, in mm towards the patient's left, back and head."""

    path: Path = field(repr=False)
    series: str = field(repr=False)
    shape: tuple[int, int]
    position: Vector
    right: Vector
    down: Vector

    @property
    def normal(self) -> Vector:
        normal = np.cross(self.right, self.down)
        return normal / np.linalg.norm(normal)


def read_series(folder: Path) -> Volume:
    """Reads the CT slices in ``folder``, sorted by position; what is no DICOM file is left out.

    Positions (ImagePositionPatient) are projected on the normal of the slices; names of files and
    instance numbers play no part. Scout images (LOCALIZER) are left out.

    Raises:
        DataError: There are slices of two series or two shapes, two slices at one place, a gap, or
            a slice that does not say where it is; or a slice cannot be read.
    """
    slices = [found for path in _paths(folder) if (found := _slice(path)) is not None]
    if len(slices) < 2:
        raise DataError(f"has {len(slices)} CT slices; a volume needs at least 2")
    first = slices[0]
    check_voxels((len(slices), *first.shape))
    if len({one.series for one in slices}) > 1:
        raise DataError("has slices of more than one series; give each series a folder of its own")
    if any(one.shape != first.shape for one in slices):
        raise DataError("has slices of different sizes")
    frames = np.array([(one.right, one.down) for one in slices])
    if np.abs(frames - frames[0]).max() > 0.01:
        raise DataError("has slices of different orientation or pixel spacing")
    ordered = sorted(slices, key=lambda one: float(one.position @ first.normal))
    step = _step(ordered, first.normal)
    values = np.stack([_read(one) for one in ordered])
    return Volume.oriented(values, np.array([step, first.down, first.right]))


def _paths(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        paths = sorted(Path(entry) for entry in entries if entry.is_file(follow_symlinks=False))
    if len(paths) > _MAX_FILES:
        raise DataError(f"has {len(paths)} files; a series has at most {_MAX_FILES}")
    return [path for path in paths if is_dicom(path)]


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise DataError(f"has a file that cannot be opened ({type(error).__name__})") from None


def _slice(path: Path) -> _Slice | None:
    """The slice in a file; None for a scout image or a file without pixels."""
    tags = read_tags(path, _TAGS)
    if "Rows" not in tags or "LOCALIZER" in tags.get("ImageType", ()):
        return None
    if tags.get("NumberOfFrames", ("1",))[:1] not in {("1",), ()}:
        raise DataError("has a file of several frames; only single slices or NIfTI can be read")
    orientation = _numbers(tags, "ImageOrientationPatient", 6)
    between_rows, between_columns = _numbers(tags, "PixelSpacing", 2)
    rows, columns = _numbers(tags, "Rows", 1)[0], _numbers(tags, "Columns", 1)[0]
    return _Slice(
        path=path,
        series=next(iter(tags.get("SeriesInstanceUID", ())), ""),
        shape=(int(rows), int(columns)),
        position=_numbers(tags, "ImagePositionPatient", 3),
        right=orientation[:3] * between_columns,
        down=orientation[3:] * between_rows,
    )


def _numbers(tags: dict[str, tuple[str, ...]], keyword: str, count: int) -> Vector:
    try:
        numbers = np.array([float(text) for text in tags.get(keyword, ())])
    except ValueError:
        numbers = np.array([])
    if len(numbers) != count or not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e6:
        raise DataError(f"has a slice without a usable {keyword}")
    return numbers


def _step(ordered: list[_Slice], normal: Vector) -> Vector:
    """The way from one slice to the next, in mm."""
    positions = np.array([one.position for one in ordered])
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    if usual < 0.01 or steps.min() < usual * _UNEVEN:
        raise DataError("has two slices at the same place")
    if np.abs(steps - usual).max() > usual * _UNEVEN:
        raise DataError("has a gap: slices are not evenly spaced, some may be missing")
    return (positions[-1] - positions[0]) / len(steps)


def _read(one: _Slice) -> npt.NDArray[np.float32]:
    values = read_hounsfield(one.path)
    if values.shape != one.shape:
        raise DataError("has a slice of another size than its header says")
    return values
