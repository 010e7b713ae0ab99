"""A study: the records a site holds, and how one of them becomes a grey image.

A new kind of study is one `match` arm in `build` and one object with four members (`Study`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from common.config import DataConfig, StudyKind

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image of one patient, as the study's table names it.

    Derived from patients, all of it: a record never leaves the site. File names of clinical
    studies hold patient identifiers, so neither ``path`` nor ``patient`` is in the ``repr``.

    Attributes:
        row: 1-based row of the table below its header, the only name of an image in an error.
        path: The image file.
        patient: Whose image it is, in the study's own words.
        label: The class, 0 or 1 (1 is the finding: malignant, abnormal).
        split: ``train``, ``val`` or ``test`` where the study has an official split.
        site: The hospital the record belongs to by nature, where the study knows it.
    """

    row: int
    path: Path = field(repr=False)
    patient: str = field(repr=False)
    label: int
    split: str | None = None
    site: str | None = None


class Study(Protocol):
    """Records, and a way to read them."""

    @property
    def name(self) -> str:
        """What the study is called."""
        ...

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, in row order."""
        ...

    @property
    def num_classes(self) -> int:
        """How many values a label may take."""
        ...

    def read(self, record: Record) -> npt.NDArray[np.float32]:
        """Returns the image of ``record`` as (H, W) in [0, 1].

        Raises:
            DataError: The image cannot be read; the text names its row, nothing else.
        """
        ...


def build(config: DataConfig, *, num_sites: int, phantom_dir: Path) -> Study:
    """Opens the study that ``config`` names.

    Args:
        config: Which study.
        num_sites: Hospitals that the phantoms are drawn for; a table study ignores it.
        phantom_dir: Where phantoms are kept, in one sub-folder for each recipe. They are
            written once and reused.

    Raises:
        DataError: The folder or its table is not what it should be.
    """
    # Imported here: both need `Record`, and a table study should not wait for the DICOM writer.
    match config.kind:
        case StudyKind.table:
            from client.data.table import read_table

            return read_table(config)
        case StudyKind.phantom:
            from client.data.phantom import phantom_study

            return phantom_study(config, num_sites=num_sites, phantom_dir=phantom_dir)


def patient_labels(records: Iterable[Record]) -> dict[str, int]:
    """Maps each patient to a label: positive if any image of the patient is.

    >>> patient_labels([Record(row=1, path=Path("a"), patient="p", label=0),
    ...                 Record(row=2, path=Path("b"), patient="p", label=1)])
    {'p': 1}
    """
    labels: dict[str, int] = {}
    for record in records:
        labels[record.patient] = max(record.label, labels.get(record.patient, 0))
    return labels
