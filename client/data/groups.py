"""Groups of patients that results are broken down by: sex, age, manufacturer."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from client.data.rows import Row
from common.config import ColumnsConfig

MISSING = "unknown"
"""The group of an image whose table does not say."""

_AGE = re.compile(r"(\d{1,3})([DWMY])")  # DICOM's age strings, such as 058Y
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupReader:
    """Reads the groups of ``data.columns.groups``, numbers cut into ``data.columns.bins``."""

    config: ColumnsConfig

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by the setting that names each."""
        return {
            f"data.columns.groups.{name}": column for name, column in self.config.groups.items()
        }

    def groups(self, row: Row) -> dict[str, str]:
        """The groups of a row.

        Raises:
            DataError: A group with bins is no number.
        """
        return {name: self._group(row, name) for name in self.config.groups}

    def _group(self, row: Row, name: str) -> str:
        column = self.config.groups[name]
        cell = row.cells[column]
        if not cell or name not in self.config.bins:
            return cell or MISSING
        number = _number(cell)
        if number is None:
            raise row.error(f"must hold a number in column {column}")
        return bin_of(number, self.config.bins[name])


def bin_of(number: float, edges: Sequence[float]) -> str:
    """The name of the half-open interval that holds ``number``.

    >>> [bin_of(age, [0, 30, 60]) for age in (-1, 0, 29.5, 30, 60)]
    ['<0', '0-30', '0-30', '30-60', '>=60']
    """
    place = bisect_right(edges, number)
    if place == 0:
        return f"<{edges[0]:g}"
    if place == len(edges):
        return f">={edges[-1]:g}"
    return f"{edges[place - 1]:g}-{edges[place]:g}"


def _number(cell: str) -> float | None:
    """A number, or the years of a DICOM age string."""
    age = _AGE.fullmatch(cell)
    if age:
        return int(age[1]) / _PER_YEAR[age[2]]
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
