"""A study described by a CSV table whose rows name image files."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.image import read_image
from client.data.study import Record
from common.config import ColumnsConfig, DataConfig
from common.errors import DataError

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableStudy:
    """Records of a CSV table; images are decoded one by one, when asked for."""

    name: str
    records: tuple[Record, ...]
    num_classes: int = 2

    def read(self, record: Record) -> npt.NDArray[np.float32]:
        """Returns the image of ``record`` as (H, W) in [0, 1]; see `Study.read`."""
        try:
            return read_image(record.path)
        except DataError as error:
            raise DataError(f"data: the image of row {record.row} {error}") from None


def read_table(config: DataConfig) -> TableStudy:
    """Reads the table of a study and checks every row; no image is opened.

    Cells are shown in no message: a wrongly named column may hold identifiers.

    Raises:
        DataError: Missing folder, table, column, value or file, a value that is not allowed, a
            path that leaves the folder, or one image under two patients.
    """
    root = _study_folder(config)
    header, rows = _read_cells(root, config.table)
    reader = _RowReader(root=root, columns=config.columns, header=header, table=config.table)
    records = tuple(reader.record(number, cells) for number, cells in enumerate(rows, start=1))
    if not records:
        raise DataError(f"data.table={config.table}: has a header and no rows")
    _check_files(records)
    _check_one_patient_per_image(records)
    return TableStudy(name=config.name, records=records)


def _study_folder(config: DataConfig) -> Path:
    if config.root is None:
        raise DataError("data.root is not set: name the folder of the study, data.root=FOLDER")
    try:
        root = config.root.expanduser().resolve()
        is_folder = root.is_dir()
    except (OSError, ValueError, RuntimeError):
        is_folder = False
        root = config.root
    if not is_folder:
        raise DataError(f"data.root={config.root}: is not a folder")
    return root


def _read_cells(root: Path, table: str) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows below it, blank lines left out, cells stripped."""
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark in front of the first column name.
        with (root / table).open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise DataError(f"data.table={table}: there is no such file in data.root={root}") from None
    except UnicodeDecodeError:
        raise DataError(f"data.table={table}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        kind = type(error).__name__
        raise DataError(f"data.table={table}: cannot be read as CSV ({kind})") from None
    if not rows:
        raise DataError(f"data.table={table}: is empty; it needs a header and rows")
    return rows[0], rows[1:]


class _RowReader:
    """Turns rows of one table into records."""

    def __init__(self, *, root: Path, columns: ColumnsConfig, header: list[str], table: str):
        self._root = root
        self._table = table
        self._names = {
            "image": columns.image,
            "patient": columns.patient,
            "label": columns.label,
            "split": columns.split,
            "site": columns.site,
        }
        self._index = {
            key: self._position(key, name, header)
            for key, name in self._names.items()
            if name is not None
        }
        self._width = len(header)

    def record(self, row: int, cells: list[str]) -> Record:
        if len(cells) != self._width:
            raise self._error(row, f"has {len(cells)} cells where the header has {self._width}")
        return Record(
            row=row,
            path=self._image_path(row, cells),
            patient=self._value(row, cells, "patient"),
            label=self._label(row, cells),
            split=self._split(row, cells),
            site=self._value(row, cells, "site") if "site" in self._index else None,
        )

    def _position(self, key: str, name: str, header: list[str]) -> int:
        if header.count(name) == 1:
            return header.index(name)
        what = "there is no such column" if name not in header else "the column is there twice"
        there = ", ".join(header)
        raise DataError(f"data.columns.{key}={name}: {what} in {self._table}; it has: {there}")

    def _error(self, row: int, text: str) -> DataError:
        return DataError(f"data.table={self._table}: row {row} {text}")

    def _value(self, row: int, cells: list[str], key: str) -> str:
        value = cells[self._index[key]]
        if not value:
            raise self._error(row, f"has no value in column {self._names[key]}")
        return value

    def _label(self, row: int, cells: list[str]) -> int:
        value = self._value(row, cells, "label")
        if value not in {"0", "1"}:
            raise self._error(row, f"must hold 0 or 1 in column {self._names['label']}")
        return int(value)

    def _split(self, row: int, cells: list[str]) -> str | None:
        if "split" not in self._index:
            return None
        value = _SPLIT_NAMES.get(self._value(row, cells, "split").lower())
        if value is None:
            raise self._error(row, f"must hold train, val or test in column {self._names['split']}")
        return value

    def _image_path(self, row: int, cells: list[str]) -> Path:
        name = self._value(row, cells, "image")
        try:
            path = (self._root / name).resolve()
        except (OSError, RuntimeError, ValueError):
            raise self._error(row, "does not name a usable image path") from None
        if not path.is_relative_to(self._root):
            raise self._error(row, "names an image outside data.root")
        return path


def _check_files(records: tuple[Record, ...]) -> None:
    missing = [record.row for record in records if not record.path.is_file()]
    if missing:
        others = f" (and those of {len(missing) - 1} more rows)" if len(missing) > 1 else ""
        raise DataError(f"data: the image of row {missing[0]} is not in data.root{others}")


def _check_one_patient_per_image(records: tuple[Record, ...]) -> None:
    """One image under two patients would count as two patients in every guarantee."""
    patients: dict[Path, set[str]] = {}
    for record in records:
        patients.setdefault(record.path, set()).add(record.patient)
    shared = {path for path, names in patients.items() if len(names) > 1}
    if shared:
        rows = Counter(record.path for record in records)
        first = next(record.row for record in records if record.path in shared)
        num_rows = sum(rows[path] for path in shared)
        raise DataError(
            f"data: {num_rows} rows give one image file to two patients or more (row {first} is "
            "the first); each image belongs to one patient"
        )
