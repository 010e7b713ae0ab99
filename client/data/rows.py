"""Tables as rows of text: CSV, or Parquet.

Cells are shown in no message: a wrongly named column may hold identifiers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.config import DataConfig
from common.errors import DataError

_MAX_ROWS = 20_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Some cells of one row.

    Attributes:
        number: 1-based, below the header.
        cells: Text by column, stripped.
        table: What the table is called in messages.
    """

    number: int
    cells: Mapping[str, str] = field(repr=False)
    table: str

    def value(self, column: str) -> str:
        """The cell, which must not be empty.

        Raises:
            DataError: It is.
        """
        value = self.cells[column]
        if not value:
            raise self.error(f"has no value in column {column}")
        return value

    def error(self, text: str) -> DataError:
        """An error about this row; ``text`` must hold no cell."""
        return DataError(f"data.table={self.table}: row {self.number} {text}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The text of a table.

    Attributes:
        name: Its file, as configured.
        header: Names of the columns.
        lines: Cells of each row, as many as the header has.
    """

    name: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...] = field(repr=False)

    def rows(self, columns: Mapping[str, str]) -> Iterator[Row]:
        """The cells of some columns, row by row.

        Args:
            columns: The columns that are wanted, by the setting that names each.

        Raises:
            DataError: A column is not there, or twice.
        """
        places = {name: self._place(setting, name) for setting, name in columns.items()}
        for number, line in enumerate(self.lines, start=1):
            cells = {name: line[place] for name, place in places.items()}
            yield Row(number=number, cells=cells, table=self.name)

    def _place(self, setting: str, name: str) -> int:
        if self.header.count(name) == 1:
            return self.header.index(name)
        missing = name not in self.header
        what = "there is no such column" if missing else "the column is there twice"
        there = ", ".join(self.header)
        raise DataError(f"{setting}={name}: {what} in {self.name}; it has: {there}")


def study_folder(config: DataConfig) -> Path:
    """``data.root``, absolute.

    Raises:
        DataError: It is not set or no folder.
    """
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


def read_rows(root: Path, name: str) -> Table:
    """Reads a table: Parquet if its first bytes say so, else CSV in UTF-8.

    Blank lines are left out. Numbers of a Parquet file become text: whole ones without a decimal
    point, missing ones empty, truth values 1 and 0.

    Raises:
        DataError: The file is missing, damaged, without rows, or its rows differ in length.
    """
    is_parquet = False
    try:
        with (root / name).open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        rows = _parquet(root / name) if is_parquet else _csv(root / name)
    except FileNotFoundError:
        raise DataError(f"data.table={name}: there is no such file in data.root={root}") from None
    except UnicodeDecodeError:
        raise DataError(f"data.table={name}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        kind = f"{'Parquet' if is_parquet else 'CSV'} ({type(error).__name__})"
        raise DataError(f"data.table={name}: cannot be read as {kind}") from None
    if not rows:
        raise DataError(f"data.table={name}: is empty; it needs a header and rows")
    header, lines = rows[0], rows[1:]
    if not lines:
        raise DataError(f"data.table={name}: has a header and no rows")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise DataError(
                f"data.table={name}: row {number} has {len(line)} cells where the header has "
                f"{len(header)}"
            )
    return Table(name=name, header=header, lines=tuple(lines))


def _csv(path: Path) -> list[tuple[str, ...]]:
    # utf-8-sig: spreadsheet programs put a byte order mark in front of the first column name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [tuple(cell.strip() for cell in row) for row in csv.reader(file) if row]


def _parquet(path: Path) -> list[tuple[str, ...]]:
    from pyarrow import parquet  # starts slowly, and most tables are CSV

    with parquet.ParquetFile(path) as file:
        if file.metadata.num_rows > _MAX_ROWS:
            raise DataError(
                f"data.table={path.name}: has {file.metadata.num_rows} rows; the limit is "
                f"{_MAX_ROWS}"
            )
        table = file.read()
    columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    return [tuple(table.column_names), *zip(*columns, strict=True)]


def _text(value: object) -> str:
    """A cell of Parquet as CSV would hold it."""
    if value is None or value != value:  # NaN alone differs from itself
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
