"""3D NIfTI-1 files in Hounsfield units, with the place of their voxels in the body."""

from __future__ import annotations

import gzip
import struct
import warnings
from pathlib import Path

import nibabel
import numpy as np

from client.data.volume import Volume, check_voxels
from common.errors import DataError

_MAX_FILE_BYTES = 1 << 30
_MAX_OFFSET = 1 << 20  # where the voxels begin; far more than any honest header extension
_HEAD_BYTES = 352
_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI counts to the right and to the front


def read_nifti_volume(path: Path) -> Volume:
    """Reads a CT stored as NIfTI-1 in HU (slope and intercept of the header applied).

    Args:
        path: ``.nii`` or ``.nii.gz``, with three axes longer than 1 or fewer.

    Raises:
        DataError: The header is unsound or of another kind, the volume too large, or damaged.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DataError(f"is a file of more than {_MAX_FILE_BYTES >> 20} MiB")
        shape = _checked_shape(_head(path))
        # Warnings and errors of the library may quote the header or the file's name.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nibabel.Nifti1Image.from_filename(path)
            values = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
            affine = np.asarray(image.affine, dtype=np.float64)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"cannot be decoded ({type(error).__name__})") from None
    if not np.isfinite(values).all():
        raise DataError("holds values that are not finite")
    return Volume.oriented(values, (_LPS @ affine[:3, :3]).T)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(path) as file:
            head = file.read(_HEAD_BYTES)
    return head


def _checked_shape(head: bytes) -> tuple[int, int, int]:
    """Reads dimensions and offset before nibabel takes memory for what they claim."""
    if len(head) < _HEAD_BYTES or head[344:348] != b"n+1\x00":
        raise DataError("is neither a folder of DICOM slices nor a single-file NIfTI-1 volume")
    order = "<" if struct.unpack_from("<i", head, 0)[0] == 348 else ">"
    num_dimensions, *sizes = struct.unpack_from(f"{order}8h", head, 40)
    (offset,) = struct.unpack_from(f"{order}f", head, 108)
    if not 3 <= num_dimensions <= 7 or not _HEAD_BYTES <= offset <= _MAX_OFFSET:
        raise DataError("has an unsound NIfTI header, or one of an image with fewer than 3 axes")
    if any(size != 1 for size in sizes[3:num_dimensions]):
        raise DataError("has more than three axes")
    check_voxels(tuple(sizes[:3]))
    return sizes[0], sizes[1], sizes[2]
