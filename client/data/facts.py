"""What a row of a study's table says of an image besides where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.groups import GroupReader
from client.data.labels import LabelReader
from client.data.patient import PatientHash
from client.data.rows import Row
from client.data.study import Record
from common.config import ColumnsConfig, DataConfig
from common.errors import DataError
from common.task import Task

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
class FactReader:
    """Turns rows into records, as ``data.columns`` and ``data.labels`` say."""

    config: ColumnsConfig
    labels: LabelReader
    groups: GroupReader
    hashed: PatientHash

    @classmethod
    def of(cls, config: DataConfig, hashed: PatientHash) -> FactReader:
        """The reader that a configuration describes.

        Raises:
            UsageError: The names of the labels do not fit their kind.
        """
        return cls(
            config=config.columns,
            labels=LabelReader.of(config),
            groups=GroupReader(config=config.columns),
            hashed=hashed,
        )

    @property
    def task(self) -> Task:
        """What the labels mean."""
        return self.labels.task

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by the setting that names each; image and patient apart."""
        named = {"data.columns.split": self.config.split, "data.columns.site": self.config.site}
        return (
            {setting: column for setting, column in named.items() if column is not None}
            | self.labels.columns
            | self.groups.columns
            | {f"data.columns.exclude.{column}": column for column in self.config.exclude}
        )

    def is_excluded(self, row: Row) -> bool:
        """Whether ``data.columns.exclude`` leaves the row out."""
        return any(row.cells[name] in values for name, values in self.config.exclude.items())

    def record(self, row: Row, *, number: int, path: Path, patient: str) -> Record:
        """The record of the image at ``path``.

        Args:
            row: What is said of it.
            number: Its name in messages.
            path: Where it lies.
            patient: The plain identifier, which is hashed here.

        Raises:
            DataError: A cell is empty or holds something that the configuration does not name.
        """
        return Record(
            row=number,
            path=path,
            patient=self.hashed(patient),
            labels=self.labels.labels(row),
            groups=self.groups.groups(row),
            split=self._split(row),
            site=self._site(row),
        )

    def _split(self, row: Row) -> str | None:
        column = self.config.split
        if column is None:
            return None
        value = _SPLIT_NAMES.get(row.value(column).lower())
        if value is None:
            raise row.error(f"must hold train, val or test in column {column}")
        return value

    def _site(self, row: Row) -> str | None:
        if self.config.site is None:
            return None
        value = row.value(self.config.site)
        return self.config.site_names.get(value, value)


def check_patients(records: Sequence[Record]) -> None:
    """Refuses one image under two patients: it would count as two in every guarantee.

    Raises:
        DataError: There is one, or there is no record at all.
    """
    if not records:
        raise DataError("data: the study has no images; data.columns.exclude leaves out every row")
    patients: dict[Path, set[str]] = {}
    for record in records:
        patients.setdefault(record.path, set()).add(record.patient)
    shared = {path for path, names in patients.items() if len(names) > 1}
    if shared:
        rows = [record.row for record in records if record.path in shared]
        raise DataError(
            f"data: {len(rows)} rows give one image file to two patients or more (row {rows[0]} is "
            "the first); each image belongs to one patient"
        )
