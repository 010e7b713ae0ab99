"""A cohort: one site's records, decoded and ready to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.image import resize
from client.data.study import Record, Study
from common.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cohort:
    """Images of a site's patients in memory.

    Public: ``num_patients`` only. Everything else is derived from patients, stays at the site and
    is not in the ``repr``.

    Attributes:
        images: (N, 1, S, S) float32 in [0, 1].
        labels: (N,) int64, the class of each image.
        patients: (N,) int64, whose image it is, from 0 to ``num_patients - 1``.
        num_patients: How many patients there are.
        patient_ids: The study's own names of them, in the order of the index.
    """

    images: npt.NDArray[np.float32] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    patients: npt.NDArray[np.int64] = field(repr=False)
    num_patients: int
    patient_ids: tuple[str, ...] = field(repr=False)


def load_cohort(study: Study, records: Sequence[Record], *, image_size: int) -> Cohort:
    """Decodes and resizes ``records``.

    Images stand in row order and patients in the order of their names, whatever the order of
    ``records``. Memory: 4 N S^2 bytes for the result (16 KiB an image at 64 px: 18 MB for 1,100,
    1.6 GB for 100,000) and one decoded image at a time.

    Args:
        study: The study that reads them.
        records: At least one record.
        image_size: S, in pixels.

    Raises:
        DataError: There are no records, or an image cannot be read (named by its row).
    """
    if not records:
        raise DataError("data: a cohort needs at least one image")
    ordered = sorted(records, key=lambda record: record.row)
    patient_ids = tuple(sorted({record.patient for record in ordered}))
    index = {patient: position for position, patient in enumerate(patient_ids)}
    images = np.empty((len(ordered), 1, image_size, image_size), dtype=np.float32)
    for position, record in enumerate(ordered):
        images[position, 0] = resize(study.read(record), image_size)
    return Cohort(
        images=images,
        labels=np.array([record.label for record in ordered], dtype=np.int64),
        patients=np.array([index[record.patient] for record in ordered], dtype=np.int64),
        num_patients=len(patient_ids),
        patient_ids=patient_ids,
    )
