"""From the cells of a row to the numbers of its label."""

from __future__ import annotations

from dataclasses import dataclass

from client.data.rows import Row
from common.config import DataConfig, LabelsConfig, TaskKind
from common.task import UNKNOWN, Task

_NUMBERS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "": UNKNOWN, "unknown": UNKNOWN}


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelReader:
    """Reads labels as ``data.labels`` says.

    Attributes:
        task: What the numbers mean.
        columns: The columns that are read, by the setting that names each.
    """

    task: Task
    columns: dict[str, str]
    config: LabelsConfig

    @classmethod
    def of(cls, config: DataConfig) -> LabelReader:
        """The reader that a configuration describes.

        Raises:
            UsageError: The names of the labels do not fit their kind.
        """
        labels = config.labels
        columns = {f"data.labels.columns.{n}": name for n, name in enumerate(labels.columns)}
        names = labels.names or labels.columns
        if labels.kind is TaskKind.binary:
            names = names or [config.columns.label]
        return cls(
            task=Task(kind=labels.kind, names=tuple(names)),
            columns=columns or {"data.columns.label": config.columns.label},
            config=labels,
        )

    def labels(self, row: Row) -> tuple[int, ...]:
        """The label of a row, as `Record.labels` holds it.

        Raises:
            DataError: A cell holds something that the configuration does not name.
        """
        match self.task.kind:
            case TaskKind.binary:
                return (self._binary(row),)
            case TaskKind.multiclass:
                return (self._class(row),)
            case TaskKind.multilabel if self.config.columns:
                return tuple(self._number(row, column) for column in self.config.columns)
            case TaskKind.multilabel:
                return self._findings(row)

    def _cell(self, row: Row, column: str) -> str:
        """The cell in the words of the configuration; it may be empty only where named."""
        cell = row.cells[column]
        if cell in self.config.values:
            return self.config.values[cell]
        return row.value(column)

    def _binary(self, row: Row) -> int:
        (column,) = self.columns.values()
        cell = self._cell(row, column)
        if cell not in {"0", "1"}:
            raise row.error(f"must hold 0 or 1 in column {column}{self._or_values()}")
        return int(cell)

    def _class(self, row: Row) -> int:
        (column,) = self.columns.values()
        cell = self._cell(row, column)
        if cell not in self.task.names:
            names = ", ".join(self.task.names)
            raise row.error(f"must hold one of {names} in column {column}{self._or_values()}")
        return self.task.names.index(cell)

    def _number(self, row: Row, column: str) -> int:
        cell = row.cells[column]
        number = _NUMBERS.get(self.config.values.get(cell, cell))
        if number is None:
            raise row.error(f"must hold 0, 1 or nothing in column {column}{self._or_values()}")
        return number

    def _findings(self, row: Row) -> tuple[int, ...]:
        (column,) = self.columns.values()
        found: set[str] = set()
        for part in row.value(column).split(self.config.separator):
            word = self.config.values.get(part.strip(), part.strip())
            if word and word not in self.task.names:
                raise row.error(
                    f"names a finding in column {column} that is not in data.labels.names"
                    f"{self._or_values()}"
                )
            found.add(word)
        return tuple(int(name in found) for name in self.task.names)

    def _or_values(self) -> str:
        return ", or a value of data.labels.values" if self.config.values else ""
