"""A folder of synthetic images: the pictures, ``metadata.csv`` and where they come from."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.cohort import Cohort, load_cohort
from client.data.patient import PatientHash
from client.data.table import read_table
from client.synthesis.source import Source
from common import provenance as origin
from common.config import AugmentConfig, ColumnsConfig, DataConfig, LabelsConfig, StudyKind
from common.errors import DataError, UsageError
from common.provenance import Provenance
from common.task import Task

TABLE = "metadata.csv"
_PICTURES = "images"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """Synthetic images with their labels, and where they come from.

    Attributes:
        cohort: the images; each is a "patient" of its own, and none is a person.
        provenance: how they were made.
        digest: SHA-256 over every file of the folder but the provenance.
    """

    cohort: Cohort = field(repr=False)
    provenance: Provenance
    digest: str

    @property
    def source(self) -> Source:
        """What is charged for their use."""
        return Source(
            what="synthetic images", provenance=self.provenance, request_id=f"pool/{self.digest}"
        )


def write_image_set(
    folder: Path,
    batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    *,
    words: Sequence[str],
    provenance: Provenance,
) -> None:
    """Write images as 8-bit PNG, their labels as words, and the provenance; whole or not at all.

    Args:
        folder: must not exist.
        batches: images (n, 1, S, S) in [0, 1] and classes (n,).
        words: what the table calls each class.
        provenance: of the generator.

    Raises:
        UsageError: if the folder exists, or its parent does not.
        OSError: if it cannot be written; nothing is left then.
    """
    if folder.exists():
        raise UsageError(f"{folder}: exists already")
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent}: no such folder")
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        work.chmod(0o755)
        (work / _PICTURES).mkdir()
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("image", "label"))
        number = 0
        for images, classes in batches:
            for image, label in zip(images, classes, strict=True):
                name = f"{_PICTURES}/{number:06d}.png"
                pixels = np.round(image[0].clip(0.0, 1.0) * 255.0).astype(np.uint8)
                Image.fromarray(pixels).save(work / name)
                rows.writerow((name, words[label]))
                number += 1
        (work / TABLE).write_text(table.getvalue(), encoding="utf-8")
        bound = replace(provenance, digest=digest_of(work))
        (work / origin.FILE_NAME).write_text(origin.dumps(bound), encoding="utf-8")
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def read_image_set(config: AugmentConfig, task: Task, *, image_size: int) -> ImageSet:
    """The images that ``augment.pool`` names, as the task's classes.

    Raises:
        UsageError: if there is no provenance, it is not of these images, or the folder, its table
            or an image is not what it should be.
    """
    assert config.pool is not None
    folder = config.pool
    if not folder.is_dir():
        raise UsageError(f"augment.pool={folder}: no such folder")
    stated = origin.read_file(config.provenance or folder / origin.FILE_NAME)
    digest = digest_of(folder)
    if stated.digest and stated.digest != digest:
        raise UsageError(
            f"augment.pool={folder}: its images are not those that its provenance is about"
        )
    labels = LabelsConfig(kind=task.kind, names=list(task.names))
    study = DataConfig(
        kind=StudyKind.table,
        name="synthetic images",
        root=folder,
        columns=ColumnsConfig(image=config.image_column, patient=None, label=config.label_column),
        labels=labels,
        public="synthetic images",
    )
    try:
        records = read_table(study, PatientHash(secret=bytes(16)))
        cohort = load_cohort(records, records.records, image_size=image_size)
    except DataError as error:
        text = str(error).replace("data.columns.", "augment.").replace("data.root", "it")
        raise UsageError(f"augment.pool={folder}: {text}") from error
    return ImageSet(cohort=cohort, provenance=stated, digest=digest)


def digest_of(folder: Path) -> str:
    """SHA-256 over names and contents of all files below ``folder`` but the provenance."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != origin.FILE_NAME:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{content}  {name}\n".encode())
    return total.hexdigest()
