"""From a file to a grey image in [0, 1].

Nothing that a file says about itself is believed: its kind comes from its first bytes, not from
its name, and sizes are checked before memory is taken. The text of an error is a predicate ("is a
volume ...") that a study completes with the row; it never holds the file's name or its content.
"""

from __future__ import annotations

import gzip
import stat
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.errors import DataError

MAX_PIXELS = 1 << 26
"""Largest image that is decoded: 67 megapixels, more than twice a full-field mammogram."""

MAX_FILE_BYTES = 1 << 29
"""Largest file that is opened: 512 MiB; a DICOM file has the same limit."""

_HEAD_BYTES = 352  # the length of a NIfTI-1 header; the other kinds need less
_GZIP = b"\x1f\x8b"


def read_image(
    path: Path, *, window: str | None = None, frame: int | None = None, side: str | None = None
) -> npt.NDArray[np.float32]:
    """Reads one image of any supported kind.

    PNG and JPEG (8 bit, grey 16 bit; colours become luma, transparency is ignored) and unsigned
    NumPy arrays are divided by the largest value of their type; floating-point NumPy arrays must
    lie in [0, 1] already. DICOM goes through its window in a process of its own (see
    `client.data.dicom`). NIfTI, whose units are open, is spread from its smallest to its largest
    value.

    Args:
        path: The file.
        window: Of a DICOM file, see `client.data.dicom.read_dicom`; as ``frame`` and ``side``
            it means nothing to the other kinds.
        frame: Of a DICOM file, counted from 1.
        side: Of a DICOM file, "L" or "R".

    Returns:
        (H, W) in [0, 1], bright where the tissue is dense.

    Raises:
        DataError: The file is missing, of another kind, too large, not 2D or damaged.
    """
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise DataError("is not a regular file")  # a pipe would never end
        size = status.st_size
        head = _read_head(path)
    except DataError:
        raise
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"cannot be opened ({type(error).__name__})") from None
    if size > MAX_FILE_BYTES:
        raise DataError(f"is a file of {size >> 20} MiB; the limit is {MAX_FILE_BYTES >> 20} MiB")
    if _is_dicom(path, head):
        from client.data.dicom import read_dicom  # pydicom starts only where there is DICOM

        return read_dicom(path, window=window, frame=frame, side=side)
    try:
        # Warnings of the decoders quote header values, which may identify a patient.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _decode(path, head)
    except DataError:
        raise
    except Exception as error:
        # Whatever a decoder raises on a damaged file, and its text may quote the file's name.
        raise DataError(f"cannot be decoded ({type(error).__name__})") from None
    if not np.isfinite(image).all():
        raise DataError("holds values that are not finite")
    return image


def check_size(height: int, width: int) -> None:
    """Refuses a size that no sound image has.

    Raises:
        DataError: A side is below 1 or there are more than ``MAX_PIXELS`` pixels.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"says it has {height} x {width} pixels; allowed are 1 to {MAX_PIXELS} in all"
        )


def resize(image: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Scales an image to a square: by area where both sides shrink, else bilinearly.

    An image that is not square is stretched: every pixel stays visible to the model.

    Args:
        image: (H, W) in [0, 1].
        size: S, in pixels.

    Returns:
        (S, S) in [0, 1].
    """
    height, width = image.shape
    if (height, width) == (size, size):
        return image
    filter_ = Image.Resampling.BOX if min(height, width) >= size else Image.Resampling.BILINEAR
    scaled = Image.fromarray(np.ascontiguousarray(image)).resize((size, size), filter_)
    return np.clip(np.asarray(scaled, dtype=np.float32), 0.0, 1.0)


def _read_head(path: Path) -> bytes:
    """The first bytes, through gzip where the file is compressed."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_GZIP):
        with gzip.open(path) as file:
            return file.read(_HEAD_BYTES)
    return head


def _is_dicom(path: Path, head: bytes) -> bool:
    if head[128:132] != b"DICM":
        return False
    with path.open("rb") as file:
        if file.read(len(_GZIP)) == _GZIP:
            raise DataError("is a DICOM file inside gzip; unpack it first")
    return True


def _decode(path: Path, head: bytes) -> npt.NDArray[np.float32]:
    """Picks the decoder by the first bytes."""
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return _read_raster(path)
    if head.startswith(b"\x93NUMPY"):
        return _read_numpy(path)
    if head[344:348] in {b"n+1\x00", b"ni1\x00"} or head[4:8] == b"n+2\x00":
        from client.data.nifti import read_nifti

        return read_nifti(path, head)
    raise DataError("is none of PNG, JPEG, DICOM, NumPy and NIfTI")


def _read_raster(path: Path) -> npt.NDArray[np.float32]:
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        check_size(image.height, image.width)
        deep = image.mode.startswith("I")  # 16 bit grey, which Pillow may hold as 32 bit
        pixels = np.asarray(image if deep else image.convert("L"))
    return (pixels / np.float32(65535 if deep else 255)).astype(np.float32)


def _read_numpy(path: Path) -> npt.NDArray[np.float32]:
    # A memory map compares the header's shape with the length of the file and takes no memory.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2:
        raise DataError(f"is an array of {array.ndim} dimensions; only 2D images can be read")
    check_size(*array.shape)
    if array.dtype.kind == "b":
        return array.astype(np.float32)
    if array.dtype in (np.uint8, np.uint16):
        return (array / np.float32(np.iinfo(array.dtype).max)).astype(np.float32)
    if array.dtype.kind != "f":
        raise DataError(f"is an array of {array.dtype}; use uint8, uint16 or floats in [0, 1]")
    values = np.asarray(array, dtype=np.float32)
    if not (values.min() >= 0 and values.max() <= 1):
        raise DataError("is an array of floats outside [0, 1]; scale it first")
    return values
