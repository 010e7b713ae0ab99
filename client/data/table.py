"""A study described by a table whose rows name image files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.facts import FactReader, check_patients
from client.data.image import read_image
from client.data.patient import PatientHash
from client.data.rows import Row, read_rows, study_folder
from client.data.study import ImageKind, Record
from common.config import DataConfig
from common.errors import DataError
from common.task import Task

ReadFile = Callable[[Path], npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableStudy:
    """Records, and files that are decoded one by one, when asked for; see `Study`."""

    name: str
    task: Task
    records: tuple[Record, ...]
    image_kind: ImageKind = ImageKind.image
    read_file: ReadFile = field(default=read_image, repr=False)

    def read(self, record: Record) -> npt.NDArray[np.float32]:
        """Returns the image or volume of ``record`` in [0, 1]; see `Study.read`."""
        try:
            return self.read_file(record.path)
        except DataError as error:
            raise DataError(
                f"data: the {self.image_kind.value} of row {record.row} {error}"
            ) from None


def read_table(config: DataConfig, hashed: PatientHash) -> TableStudy:
    """Reads the table of a study and checks every row; no image is opened.

    Raises:
        DataError: Missing folder, table, column, value or file, a value that is not allowed, a
            path that leaves the folder, or one image under two patients.
    """
    facts = FactReader.of(config, hashed)
    records = table_records(config, facts)
    return TableStudy(
        name=config.name, task=facts.task, records=records, read_file=image_reader(config)
    )


def image_reader(config: DataConfig) -> ReadFile:
    """Reads one image file, a DICOM one through ``data.window`` and turned to ``data.side``."""
    side = None if config.side is None else config.side.value
    return partial(read_image, window=config.window, side=side)


def table_records(
    config: DataConfig,
    facts: FactReader,
    *,
    folders: bool = False,
    named: Mapping[str, Sequence[Path]] | None = None,
) -> tuple[Record, ...]:
    """The records of a table whose image column holds paths below ``data.image_folder``.

    Args:
        config: Which table.
        facts: What reads its other columns.
        folders: Whether a path may also be a folder (of a series).
        named: Files by name, for rows whose cell is no path but a file's name.

    Raises:
        DataError: As `read_table`.
    """
    base = image_folder(config)
    columns, image = config.columns, config.columns.image
    used = {"data.columns.image": image} | facts.columns
    if columns.patient is not None:
        used["data.columns.patient"] = columns.patient
    records = tuple(
        facts.record(
            row,
            number=row.number,
            path=_image_path(row, image, base, named or {}),
            patient=f"row {row.number}" if columns.patient is None else row.value(columns.patient),
        )
        for row in read_rows(study_folder(config), config.table).rows(used)
        if not facts.is_excluded(row)
    )
    _check_files(records, folders=folders)
    check_patients(records)
    return records


def image_folder(config: DataConfig) -> Path:
    """``data.image_folder`` in ``data.root``, absolute.

    Raises:
        DataError: It is no folder, or outside.
    """
    root = study_folder(config)
    base = (root / config.image_folder).resolve()
    if not (base.is_relative_to(root) and base.is_dir()):
        raise DataError(f"data.image_folder={config.image_folder}: is no folder in data.root")
    return base


def _image_path(row: Row, column: str, base: Path, named: Mapping[str, Sequence[Path]]) -> Path:
    name = row.value(column)
    if name in named:
        if len(named[name]) > 1:
            raise row.error("names an image that is there more than once")
        return named[name][0]
    try:
        path = (base / name).resolve()
    except (OSError, RuntimeError, ValueError):
        raise row.error("does not name a usable image path") from None
    if not path.is_relative_to(base):
        raise row.error("names an image outside data.root")
    return path


def _check_files(records: tuple[Record, ...], *, folders: bool) -> None:
    missing = [
        record.row
        for record in records
        if not (record.path.is_file() or (folders and record.path.is_dir()))
    ]
    if missing:
        others = f" (and those of {len(missing) - 1} more rows)" if len(missing) > 1 else ""
        raise DataError(f"data: the image of row {missing[0]} is not in data.root{others}")
