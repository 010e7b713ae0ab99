"""CBIS-DDSM in its official layout: masses cut out of full mammograms.

Reads the two mass tables of the collection (Lee et al. 2017, doi 10.7937/K9/TCIA.2016.7O02S9CY),
one row for each mass, and the DICOM files of the mammogram and of the mass's mask that each row
names. The folder of a row is found by the table's full path, or by its first part alone, since
download tools rename what lies below.

With ``data.paper_crops`` the crops are those of Osuala et al. 2024 (arXiv 2407.12669, as their code
of that year makes them): the mask is the file that is higher than half the mammogram, each contour
is a mass, the whole mammogram is spread over 8 bits, the square is the odd one of `paper_square`
and drawn at random, and what is read is reduced to 128 x 128. Their random draws are unknown, so
the jitter is of the same law and not the same; and they spread the stored numbers, we what a viewer
shows, which differs where a header has a window that cuts. Without it: the mask is the largest file
with two values only, its largest part is the mass, and the crop keeps the mammogram's grey and
size.

Cost: each reading decodes a whole mammogram (30 MB) and its mask; use a cache. With
``paper_crops`` all masks are decoded when the study is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.dicom import read_dicom, read_tags
from client.data.facts import FactReader, check_patients
from client.data.image import resize
from client.data.mass_crop import (
    Box,
    Mask,
    box_of_mass,
    nearest,
    paper_boxes,
    paper_square,
    square_around,
)
from client.data.patient import PatientHash
from client.data.rows import Row, read_rows, study_folder
from client.data.study import ImageKind, Record
from client.data.table import image_folder
from common.config import DataConfig
from common.errors import DataError
from common.task import Task

TABLES = {
    "train": "mass_case_description_train_set.csv",
    "test": "mass_case_description_test_set.csv",
}
_IMAGE, _MASK, _PATIENT = "image file path", "ROI mask file path", "patient_id"
_PAPER_SIZE = 128
_JITTER_SEED = 2024

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mass:
    """Files of one mass; ``box`` where it is known before the mask is read."""

    mammogram: Path
    mask_folder: Path
    box: Box | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CbisStudy:
    """Mass crops; see `Study`. Rows are counted over both tables, the training table first."""

    name: str
    task: Task
    records: tuple[Record, ...]
    image_kind: ImageKind = ImageKind.image
    paper_crops: bool = False
    masses: dict[int, _Mass] = field(repr=False)

    def sources(self, record: Record) -> tuple[Path, ...]:
        """The files that the crop depends on; see `client.data.cache.ManySources`."""
        mass = self.masses[record.row]
        return (mass.mammogram, mass.mask_folder)

    def read(self, record: Record) -> Pixels:
        """Returns the crop of ``record`` as (S, S) in [0, 1]; S is 128 with ``paper_crops``."""
        mass = self.masses[record.row]
        try:
            image = read_dicom(mass.mammogram)
            if not self.paper_crops:
                return _plain_crop(image, mass)
            assert mass.box is not None
            jitter = np.random.default_rng([_JITTER_SEED, record.row])
            return _paper_crop(image, paper_square(mass.box, _shape(image), jitter))
        except DataError as error:
            raise DataError(f"data: the image of row {record.row} {error}") from None


def read_cbis_ddsm(config: DataConfig, hashed: PatientHash) -> CbisStudy:
    """Reads the mass tables and finds the files of every row.

    Raises:
        DataError: A table, a column, a value, a folder or a file is not what it should be.
    """
    root = study_folder(config)
    base = image_folder(config)
    facts = FactReader.of(config, hashed)
    records: list[Record] = []
    masses: dict[int, _Mass] = {}
    for split, place, row in _rows(root, facts):
        if facts.is_excluded(row):
            continue
        for mass in _masses(row, base, paper_crops=config.paper_crops):
            number = len(masses) + 1 if config.paper_crops else place
            masses[number] = mass
            record = facts.record(
                row, number=number, path=mass.mammogram, patient=row.value(_PATIENT)
            )
            records.append(replace(record, split=split))
    check_patients(records)
    return CbisStudy(
        name=config.name,
        task=facts.task,
        records=tuple(records),
        paper_crops=config.paper_crops,
        masses=masses,
    )


def _rows(root: Path, facts: FactReader) -> Iterator[tuple[str, int, Row]]:
    """Rows of both tables, with their part of the split and a number over both."""
    fixed = {"official.image": _IMAGE, "official.mask": _MASK, "official.patient": _PATIENT}
    start = 0
    for split, name in TABLES.items():
        table = read_rows(root, name)
        for row in table.rows(fixed | facts.columns):
            yield split, start + row.number, row
        start += len(table.lines)


def _masses(row: Row, base: Path, *, paper_crops: bool) -> Iterator[_Mass]:
    """The masses of one row: one, or with ``paper_crops`` one for each contour."""
    mammogram = _largest(_files(_folder(row, _IMAGE, base)))
    mask_folder = _folder(row, _MASK, base)
    if mammogram is None:
        raise row.error("names a mammogram whose folder has no DICOM file")
    if not paper_crops:
        yield _Mass(mammogram=mammogram, mask_folder=mask_folder)
        return
    try:
        boxes = paper_boxes(_paper_mask(mask_folder, _size(mammogram)))
    except DataError as error:
        raise row.error(f"names a mask or mammogram that {error}") from None
    for box in boxes:
        yield _Mass(mammogram=mammogram, mask_folder=mask_folder, box=box)


def _folder(row: Row, column: str, base: Path) -> Path:
    named = Path(row.value(column))
    for name in (named.parent, Path(named.parts[0])):
        folder = (base / name).resolve()
        if not folder.is_relative_to(base):
            raise row.error(f"names a folder outside data.root in column {column}")
        if name.parts and folder.is_dir():
            return folder
    raise row.error(f"names a folder that is not there in column {column}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.dcm") if path.is_file())


def _size(path: Path) -> tuple[int, int]:
    """Height and width, as the header says."""
    tags = read_tags(path, ("Rows", "Columns"))
    try:
        return int(tags["Rows"][0]), int(tags["Columns"][0])
    except (KeyError, IndexError, ValueError):
        raise DataError("has no size in its header") from None


def _largest(paths: list[Path]) -> Path | None:
    if len(paths) < 2:
        return paths[0] if paths else None
    return max(paths, key=lambda path: int(np.prod(_size(path))))


def _shape(image: Pixels) -> tuple[int, int]:
    height, width = image.shape
    return height, width


def _plain_crop(image: Pixels, mass: _Mass) -> Pixels:
    box = box_of_mass(_mask(mass.mask_folder, _shape(image)))
    if box is None:
        raise DataError("has an empty mask")
    return np.ascontiguousarray(square_around(box, _shape(image)).cut(image))


def _mask(folder: Path, shape: tuple[int, int]) -> Mask:
    """The largest file with two values; a crop of the mammogram lies beside it, by chance named."""
    for path in sorted(_files(folder), key=lambda path: int(np.prod(_size(path))), reverse=True):
        values = read_dicom(path)
        low, high = values.min(), values.max()
        mask = values > (low + high) / 2
        if np.array_equal(values, np.where(mask, high, low)):
            return nearest(mask, shape)
    raise DataError("has no mask: no DICOM file in its folder has two values only")


def _paper_mask(folder: Path, shape: tuple[int, int]) -> Mask:
    """The last file higher than half the mammogram."""
    found = [path for path in _files(folder) if _size(path)[0] > shape[0] / 2]
    if not found:
        raise DataError("has no mask: no DICOM file in its folder is half as high as the image")
    return nearest(read_dicom(found[-1]) > 0, shape)


def _paper_crop(image: Pixels, square: Box) -> Pixels:
    low, high = image.min(), image.max()
    eight_bits = np.rint((image - low) / max(high - low, np.float32(1e-12)) * 255)
    crop = resize(np.ascontiguousarray(square.cut(eight_bits / np.float32(255))), _PAPER_SIZE)
    return (np.rint(crop * 255) / np.float32(255)).astype(np.float32)
