"""A cohort: one site's records, decoded and ready to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.image import resize
from client.data.study import ImageKind, Record, Study
from client.data.volume import resize_volume
from common.config import TaskKind
from common.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cohort:
    """Images of a site's patients in memory.

    Public: ``num_patients`` only. Everything else is derived from patients, stays at the site and
    is not in the ``repr``.

    Attributes:
        images: (N, 1, S, S) or, of volumes, (N, 1, D, S, S) float32 in [0, 1]; it may be a
            memory map.
        labels: (N,) int64, the class of each image; or of a multi-label task (N, L) int64, 0, 1
            or -1 (unknown) for each finding.
        patients: (N,) int64, whose image it is, from 0 to ``num_patients - 1``.
        num_patients: How many patients there are.
        patient_ids: Their keyed hashes, in the order of the index.
        groups: For each name, such as ``"sex"``, (N,) strings; empty where the study has none.
    """

    images: npt.NDArray[np.float32] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    patients: npt.NDArray[np.int64] = field(repr=False)
    num_patients: int
    patient_ids: tuple[str, ...] = field(repr=False)
    groups: dict[str, npt.NDArray[np.str_]] = field(
        default_factory=dict[str, npt.NDArray[np.str_]], repr=False
    )


def load_cohort(
    study: Study, records: Sequence[Record], *, image_size: int, depth: int | None = None
) -> Cohort:
    """Decodes and resizes ``records``.

    Images stand in row order and patients in the order of their first rows, whatever the order of
    ``records``. Memory: 4 N S^2 bytes for the result (16 KiB an image at 64 px: 18 MB for 1,100,
    1.6 GB for 100,000), D times as much for volumes, and one decoded image at a time.

    Args:
        study: The study that reads them.
        records: At least one record.
        image_size: S, in pixels.
        depth: D, in slices; for volumes only.

    Raises:
        DataError: There are no records, or an image cannot be read (named by its row).
    """
    if not records:
        raise DataError("data: a cohort needs at least one image")
    ordered = sorted(records, key=lambda record: record.row)
    shape = image_shape(study.image_kind, image_size=image_size, depth=depth)
    images = np.empty((len(ordered), 1, *shape), dtype=np.float32)
    for position, record in enumerate(ordered):
        images[position, 0] = fit(study.read(record), shape)
    return assemble(study, ordered, images)


def assemble(study: Study, ordered: Sequence[Record], images: npt.NDArray[np.float32]) -> Cohort:
    """The cohort of ``ordered`` records (in row order) whose ``images`` are decoded already."""
    patient_ids = tuple(dict.fromkeys(record.patient for record in ordered))
    index = {patient: position for position, patient in enumerate(patient_ids)}
    labels = np.array([record.labels for record in ordered], dtype=np.int64)
    names = ordered[0].groups
    return Cohort(
        images=images,
        labels=labels if study.task.kind is TaskKind.multilabel else labels[:, 0],
        patients=np.array([index[record.patient] for record in ordered], dtype=np.int64),
        num_patients=len(patient_ids),
        patient_ids=patient_ids,
        groups={name: np.array([record.groups[name] for record in ordered]) for name in names},
    )


def image_shape(kind: ImageKind, *, image_size: int, depth: int | None) -> tuple[int, ...]:
    """The shape that images of a cohort are brought to: (S, S) or (D, S, S).

    Raises:
        DataError: ``depth`` is missing for volumes.
    """
    if kind is ImageKind.image:
        return (image_size, image_size)
    if depth is None:
        raise DataError("data.volume.depth is not set: volumes need a number of slices")
    return (depth, image_size, image_size)


def fit(image: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Stretches one image or volume to ``shape``; see `resize` and `resize_volume`."""
    if len(shape) == 2:
        return resize(image, shape[-1])
    return resize_volume(image, shape)
