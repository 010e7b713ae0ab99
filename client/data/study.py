"""A study: the records a site holds, and how one of them becomes a grey image or volume.

A new kind of study is one `match` arm in `build` and one object with five members (`Study`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from client.data.patient import PatientHash
from common.config import DataConfig, StudyKind
from common.task import Task

SPLITS = ("train", "val", "test")


class ImageKind(Enum):
    """How many dimensions an image of a study has."""

    image = "image"
    volume = "volume"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image (or one volume) of one patient.

    Derived from patients, all of it: a record never leaves the site. File names of clinical
    studies hold patient identifiers and groups describe a person, so none of ``path``,
    ``patient`` and ``groups`` is in the ``repr``.

    Attributes:
        row: 1-based row of the table below its header, or position in a walked folder; the only
            name of an image in an error.
        path: The image file, or the folder of a series.
        patient: Whose image it is: a keyed hash, see `client.data.patient`.
        labels: One class number (binary: 1 is the finding), or for a multi-label task one 0, 1 or
            -1 (unknown) for each finding.
        groups: What results are broken down by, such as ``{"sex": "F", "age": "60-70"}``.
        split: ``train``, ``val`` or ``test`` where the study has an official split.
        site: The hospital the record belongs to by nature, where the study knows it.
    """

    row: int
    path: Path = field(repr=False)
    patient: str = field(repr=False)
    labels: tuple[int, ...]
    groups: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, hash=False)
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
    def task(self) -> Task:
        """What the labels mean."""
        ...

    @property
    def image_kind(self) -> ImageKind:
        """Whether `read` returns images or volumes."""
        ...

    def read(self, record: Record) -> npt.NDArray[np.float32]:
        """Returns the image of ``record`` as (H, W), or the volume as (D, H, W), in [0, 1].

        Raises:
            DataError: The image cannot be read; the text names its row, nothing else.
        """
        ...


def build(config: DataConfig, *, num_sites: int, phantom_dir: Path, secret: bytes) -> Study:
    """Opens the study that ``config`` names.

    Args:
        config: Which study.
        num_sites: Hospitals that the phantoms are drawn for; a table study ignores it.
        phantom_dir: Where phantoms are kept, in one sub-folder for each recipe. They are
            written once and reused.
        secret: The key of the patients' hashes, at least 16 bytes; see `PatientHash`.

    Raises:
        DataError: The folder or its table is not what it should be.
    """
    hashed = PatientHash(secret=secret)
    # Imported here: all need `Record`, and a table study should not wait for the DICOM writer.
    match config.kind:
        case StudyKind.table:
            from client.data.table import read_table

            return read_table(config, hashed)
        case StudyKind.dicom_folder:
            from client.data.dicom_folder import read_dicom_folder

            return read_dicom_folder(config, hashed)
        case StudyKind.cbis_ddsm:
            from client.data.cbis_ddsm import read_cbis_ddsm

            return read_cbis_ddsm(config, hashed)
        case StudyKind.chest_xray:
            from client.data.chest_xray import read_chest_xray

            return read_chest_xray(config, hashed)
        case StudyKind.ct_volumes:
            from client.data.ct_volumes import read_ct_volumes

            return read_ct_volumes(config, hashed)
        case StudyKind.phantom:
            from client.data.phantom import phantom_study

            return phantom_study(
                config, num_sites=num_sites, phantom_dir=phantom_dir, hashed=hashed
            )


def patient_labels(records: Iterable[Record]) -> dict[str, int]:
    """Maps each patient to one label, in the order of the patients' first rows.

    With one label an image, a patient's is the largest (binary: positive if any image is). With
    several it is 0 where no finding is positive, else 1 + the number of the rarest one (counted
    in patients) that is: strata by it keep rare findings on every side.

    >>> patient_labels([Record(row=1, path=Path("a"), patient="p", labels=(0,)),
    ...                 Record(row=2, path=Path("b"), patient="p", labels=(1,))])
    {'p': 1}
    """
    findings: dict[str, tuple[int, ...]] = {}
    for record in sorted(records, key=lambda record: record.row):
        before = findings.get(record.patient, record.labels)
        findings[record.patient] = tuple(map(max, before, record.labels))
    if all(len(labels) == 1 for labels in findings.values()):
        return {patient: max(labels[0], 0) for patient, labels in findings.items()}
    frequency = Counter(
        number for labels in findings.values() for number, label in enumerate(labels) if label == 1
    )
    rarity = {
        number: place
        for place, number in enumerate(sorted(frequency, key=lambda n: (frequency[n], n)))
    }
    return {
        patient: 1 + min(positive, key=rarity.__getitem__) if positive else 0
        for patient, labels in findings.items()
        for positive in [[number for number, label in enumerate(labels) if label == 1]]
    }
