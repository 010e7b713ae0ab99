"""2D images in NIfTI-1 files."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt

from client.data.image import check_size
from common.errors import DataError

_MAX_OFFSET = 1 << 20  # where the pixels begin; far more than any honest header extension


def read_nifti(path: Path, head: bytes) -> npt.NDArray[np.float32]:
    """Reads a 2D NIfTI-1 image, transposed so that rows run down (NIfTI stores x first).

    Values are scaled by the header's slope and intercept, then spread from the smallest (0) to the
    largest (1).

    Args:
        path: ``.nii`` or ``.nii.gz``.
        head: The first 352 bytes, uncompressed.

    Returns:
        (H, W) in [0, 1].

    Raises:
        DataError: The header is unsound, of another version, or the image is not 2D.
    """
    shape = _checked_shape(head)
    image = nibabel.Nifti1Image.from_filename(path)
    values = np.asarray(image.dataobj, dtype=np.float32).reshape(shape).T
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.zeros(values.shape, dtype=np.float32)
    return (values - np.float32(low)) / np.float32(high - low)


def _checked_shape(head: bytes) -> tuple[int, int]:
    """Reads dimensions and offset before nibabel takes memory for what they claim."""
    for order in ("<", ">"):
        if struct.unpack_from(f"{order}i", head, 0)[0] == 348:
            break
    else:
        raise DataError("is not a NIfTI-1 file; NIfTI-2 and pairs of files are not supported")
    if head[344:348] != b"n+1\x00":
        raise DataError("is half a pair of NIfTI files; save it as one .nii file")
    num_dimensions, *sizes = struct.unpack_from(f"{order}8h", head, 40)
    (offset,) = struct.unpack_from(f"{order}f", head, 108)
    if not 1 <= num_dimensions <= 7 or not 352 <= offset <= _MAX_OFFSET:
        raise DataError("has an unsound NIfTI header")
    if num_dimensions < 2 or any(size != 1 for size in sizes[2:num_dimensions]):
        raise DataError("is not a 2D image; volumes cannot be read")
    check_size(sizes[1], sizes[0])
    return sizes[0], sizes[1]
