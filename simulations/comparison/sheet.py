"""A table that a page shows and a spreadsheet reads: the same rows in both."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from simulations.report.wording import estimate, round_up

_NOTHING = "\u2013"


class Kind(Enum):
    """What a column holds, and so how it reads.

    ``estimate`` and ``change`` hold a mapping with ``value``, ``ci95`` and ``unsaid``; a change has
    a sign. ``target`` is an epsilon that was asked for, ``epsilon`` one that was spent: rounded up.
    ``spread`` is a standard deviation, ``number`` any other number, ``chance`` a p-value.
    """

    text = auto()
    count = auto()
    number = auto()
    spread = auto()
    estimate = auto()
    change = auto()
    target = auto()
    epsilon = auto()
    chance = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column: its heading on the page, its name in the file."""

    heading: str
    name: str
    kind: Kind = Kind.text

    @property
    def is_words(self) -> bool:
        """Whether it reads from the left."""
        return self.kind is Kind.text

    def shown(self, value: Any) -> str:
        """As the page shows it."""
        match self.kind:
            case Kind.text:
                return str(value) if value else _NOTHING
            case Kind.estimate:
                return estimate(value)
            case Kind.change:
                return estimate(value, "{:+.3f}")
            case Kind.target:
                return "none" if value is None else f"{value:g}"
            case Kind.epsilon:
                return round_up(value)
            case _ if value is None:
                return _NOTHING
            case Kind.count:
                return f"{value:,}"
            case Kind.chance:
                return "< 0.001" if value < 0.001 else f"{value:.3f}"
            case Kind.spread:
                return f"{value:.3f}"
            case Kind.number:
                return f"{value:.4g}".replace("e-0", "e-").replace("-", "\u2011")

    def parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """As a file holds it: plain numbers by name, what is absent empty."""
        match self.kind:
            case Kind.estimate | Kind.change:
                low, high = (None, None) if not value or not value["ci95"] else value["ci95"]
                yield self.name, None if not value else value["value"]
                yield f"{self.name}_low", low
                yield f"{self.name}_high", high
                yield f"{self.name}_unsaid", None if not value else value["unsaid"]
            case Kind.target | Kind.epsilon:
                yield self.name, "inf" if value is None else value
            case _:
                yield self.name, value


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table.

    Attributes:
        name: of its file, without the ending.
        caption: what it shows and how to read it.
        columns: the first names the row.
        rows: one value for each column.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    def shown(self) -> Iterator[list[tuple[str, Column]]]:
        """Row by row the text of each cell, with its column."""
        for row in self.rows:
            yield [
                (column.shown(value), column)
                for column, value in zip(self.columns, row, strict=True)
            ]

    def to_csv(self) -> str:
        """As a file; an epsilon without bound is ``inf``, what is absent is empty."""
        rows = [
            dict(
                part
                for column, value in zip(self.columns, row, strict=True)
                for part in column.parts(value)
            )
            for row in self.rows
        ]
        return to_csv(rows)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the names of the first one; nothing without rows."""
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def file_name(text: str) -> str:
    """A name that any file system takes.

    >>> file_name("age band/x")
    'age-band-x'
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)
