from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from client.data.study import ImageKind, Record
from common.config import TaskKind
from common.errors import DataError
from common.task import Task

BINARY = Task(kind=TaskKind.binary, names=("malignant",))


@dataclass(frozen=True, kw_only=True)
class HeldStudy:
    """A study whose images are in memory; a row without one cannot be read."""

    records: tuple[Record, ...]
    images: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    name: str = "held"
    task: Task = BINARY
    image_kind: ImageKind = ImageKind.image

    def read(self, record: Record) -> npt.NDArray[np.float32]:
        if record.row not in self.images:
            raise DataError(f"data: the image of row {record.row} cannot be decoded (ValueError)")
        return self.images[record.row]


MakeRecord = Callable[..., Record]


@pytest.fixture
def make_record() -> MakeRecord:
    """One record; ``at`` is its path."""

    def build(
        row: int, patient: str | None = None, *labels: int, at: str = "", **more: object
    ) -> Record:
        return Record(
            row=row,
            path=Path(at or f"secret-{row}.png"),
            patient=patient or f"secret-p{row}",
            labels=labels or (row % 2,),
            **more,  # pyright: ignore[reportArgumentType]
        )

    return build


@pytest.fixture
def held_study() -> type[HeldStudy]:
    return HeldStudy
