"""A folder of DICOM files whose labels stand in a table, matched by an identifier or tag."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.datadict import tag_for_keyword

from client.data.dicom import read_tags
from client.data.facts import FactReader, check_patients
from client.data.patient import PatientHash
from client.data.rows import Row, Table, read_rows, study_folder
from client.data.series import is_dicom
from client.data.study import Record
from client.data.table import TableStudy, image_folder, image_reader
from common.config import DataConfig
from common.errors import DataError

PATH = "path"
"""``data.join`` for a table that names files by their path below ``data.image_folder``."""

_MAX_FILES = 5_000_000


def read_dicom_folder(config: DataConfig, hashed: PatientHash) -> TableStudy:
    """Walks ``data.image_folder`` and matches every image with a row of the table.

    A file and a row belong together if the tag ``data.join`` of the file equals the row's cell in
    ``data.columns.image``; with a tag of a patient or study, one row labels several files. Other
    columns may be tags too: what the table does not have is looked up in the file. Files without a
    row are left out, as are files without pixels. Images are numbered in the order of their paths.

    Raises:
        DataError: No folder or table, a row without any file, two rows with the same value, a file
            without the tag of the patient, or a value that is not allowed.
    """
    facts = FactReader.of(config, hashed)
    records = joined_records(config, facts)
    return TableStudy(
        name=config.name, task=facts.task, records=records, read_file=image_reader(config)
    )


def joined_records(
    config: DataConfig, facts: FactReader, *, folders: bool = False
) -> tuple[Record, ...]:
    """The records of DICOM files that have a row.

    Args:
        config: Which folder and table.
        facts: What reads the table's other columns.
        folders: Whether each folder that holds DICOM files is one record (a series); its first
            file with pixels then speaks for it.

    Raises:
        DataError: As `read_dicom_folder`.
    """
    base = image_folder(config)
    table = read_rows(study_folder(config), config.table)
    patient = config.columns.patient or "SOPInstanceUID"
    wanted = facts.columns | {"data.columns.patient": patient}
    in_table = {setting: name for setting, name in wanted.items() if name in table.header}
    in_file = {setting: name for setting, name in wanted.items() if setting not in in_table}
    _check_keywords(in_file | {"data.join": config.join}, table)
    matcher = _Matcher(
        base=base,
        join=config.join,
        tags=tuple(sorted({*in_file.values(), "Rows"} | ({config.join} - {PATH}))),
        rows=_rows_by_key(table, config.columns.image, in_table),
    )
    records: list[Record] = []
    used: set[str] = set()
    seen: set[Path] = set()
    for key, row, file in matcher.matches():
        used.add(key)
        path = file.parent if folders else file
        if path in seen:
            continue
        seen.add(path)
        if not facts.is_excluded(row):
            number = len(records) + 1
            records.append(facts.record(row, number=number, path=path, patient=row.value(patient)))
    _check_used(matcher.rows, used, config)
    check_patients(records)
    return tuple(records)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Matcher:
    """Finds the row of each file, and adds the file's own tags to it."""

    base: Path
    join: str
    tags: tuple[str, ...]
    rows: dict[str, Row]

    def matches(self) -> Iterator[tuple[str, Row, Path]]:
        """Key, row and file of each image that has a row."""
        for position, path in enumerate(_dicom_files(self.base), start=1):
            tags = self._tags_of(path, position)
            by_path = path.relative_to(self.base).as_posix()
            key = by_path if self.join == PATH else tags[self.join]
            row = self.rows.get(key)
            if row is not None and tags["Rows"]:
                yield key, replace(row, cells={**tags, **row.cells}), path

    def _tags_of(self, path: Path, position: int) -> dict[str, str]:
        try:
            found = read_tags(path, self.tags)
        except DataError as error:
            raise DataError(f"data: DICOM file {position} in the order of paths {error}") from None
        return {name: "\\".join(found.get(name, ())).strip() for name in self.tags}


def _dicom_files(base: Path) -> Iterator[Path]:
    """DICOM files below a folder, in the order of their paths; links are not followed."""
    paths: list[Path] = []
    for folder, _, names in os.walk(base):
        paths += [Path(folder) / name for name in names]
        if len(paths) > _MAX_FILES:
            raise DataError(f"data.image_folder: has more than {_MAX_FILES} files")
    for path in sorted(paths):
        try:
            if path.is_file() and not path.is_symlink() and is_dicom(path):
                yield path
        except DataError as error:
            raise DataError(f"data.image_folder: {error}") from None


def _check_keywords(columns: Mapping[str, str], table: Table) -> None:
    for setting, name in columns.items():
        if name != PATH and tag_for_keyword(name) is None:
            there = ", ".join(table.header)
            raise DataError(
                f"{setting}={name}: is neither a column of {table.name} nor a DICOM keyword; "
                f"columns are: {there}"
            )


def _rows_by_key(table: Table, column: str, columns: Mapping[str, str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in table.rows({"data.columns.image": column, **columns}):
        key = row.value(column)
        if key in rows:
            raise row.error(f"holds the same value in column {column} as row {rows[key].number}")
        rows[key] = row
    return rows


def _check_used(rows: Mapping[str, Row], used: set[str], config: DataConfig) -> None:
    left = [row.number for key, row in rows.items() if key not in used]
    if left:
        raise DataError(
            f"data.table={config.table}: {len(left)} of {len(rows)} rows match no DICOM file by "
            f"data.join={config.join} (row {left[0]} is the first)"
        )
