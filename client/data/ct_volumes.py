"""CT volumes: folders of DICOM slices, or NIfTI files, named by a table."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.dicom_folder import PATH, joined_records
from client.data.facts import FactReader
from client.data.nifti_volume import read_nifti_volume
from client.data.patient import PatientHash
from client.data.series import read_series
from client.data.study import ImageKind
from client.data.table import TableStudy, table_records
from client.data.volume import Volume
from common.config import DataConfig
from common.errors import DataError


def read_ct_volumes(config: DataConfig, hashed: PatientHash) -> TableStudy:
    """Reads a table whose image column names folders of slices or NIfTI files, one a volume.

    With a DICOM keyword in ``data.join`` the image column holds its values instead, and every
    folder below ``data.image_folder`` whose slices have a row is a volume.

    What `read` of the study returns is windowed, resampled and cropped or padded (or stretched) as
    ``data.volume`` says: (D, S, S) with S = ``data.image_size``.

    Raises:
        DataError: As `client.data.table.read_table` and `client.data.dicom_folder`.
    """
    facts = FactReader.of(config, hashed)
    find = table_records if config.join == PATH else joined_records
    return TableStudy(
        name=config.name,
        task=facts.task,
        records=find(config, facts, folders=True),
        image_kind=ImageKind.volume,
        read_file=partial(_read, config=config),
    )


def _read(path: Path, config: DataConfig) -> npt.NDArray[np.float32]:
    volume = read_volume(path)
    return volume.on_grid(config.volume, config.image_size)


def read_volume(path: Path) -> Volume:
    """Reads a folder of DICOM slices or a NIfTI file in HU.

    Raises:
        DataError: It is neither, or unsound.
    """
    try:
        if path.is_dir():
            return read_series(path)
    except OSError as error:
        raise DataError(f"cannot be opened ({type(error).__name__})") from None
    return read_nifti_volume(path)
