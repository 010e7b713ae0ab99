"""What a DICOM header says of the shape and storage of its pixels, checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from client.data.image import check_size
from common.errors import DataError

MAX_FRAMES = 1 << 14
"""Most frames of one file."""

MAX_VALUES = 1 << 29
"""Most samples of one file, over all frames: a CT of 2,048 slices."""

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""Where pixels may stand; only the first can be read."""

_PALETTE = "PALETTE COLOR"
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_COLOR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomHeader:
    """Shape and storage of the pixels, each field within its bounds and in accord with the rest.

    Attributes:
        rows: H.
        columns: W.
        num_frames: Frames in the file.
        samples: 1 for grey and palettes, 3 for colour.
        photometric: ``PhotometricInterpretation``.
        bits_allocated: 1, 8, 16 or 32.
        bits_stored: 1 to ``bits_allocated``.
        signed: Whether stored numbers are in two's complement.
        padding: Smallest and largest stored number that marks a pixel outside the image.
    """

    rows: int
    columns: int
    num_frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    signed: bool
    padding: tuple[int, int] | None

    @classmethod
    def of(cls, dataset: Dataset) -> DicomHeader:
        """Reads and checks the header.

        Raises:
            DataError: A field is missing, out of bounds or against another one.
        """
        rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
        check_size(rows, columns)
        num_frames = integer(dataset, "NumberOfFrames", 1)
        if not 1 <= num_frames <= MAX_FRAMES:
            raise DataError(f"says it has {num_frames} frames; allowed are 1 to {MAX_FRAMES}")
        samples, photometric = _color_space(dataset)
        if rows * columns * samples * num_frames > MAX_VALUES:
            raise DataError(f"says it has more than {MAX_VALUES} samples over all its frames")
        allocated, stored = _bits(dataset)
        signed = integer(dataset, "PixelRepresentation", 0)
        if signed not in {0, 1}:
            raise DataError("says neither signed nor unsigned of its pixels")
        return cls(
            rows=rows,
            columns=columns,
            num_frames=num_frames,
            samples=samples,
            photometric=photometric,
            bits_allocated=allocated,
            bits_stored=stored,
            signed=signed == 1,
            padding=_padding(dataset, bits=stored, signed=signed == 1) if samples == 1 else None,
        )

    @property
    def is_grey(self) -> bool:
        """Whether pixels are grey values rather than colours or numbers of colours."""
        return self.photometric in _GREY

    @property
    def is_inverted(self) -> bool:
        """Whether large values are dark."""
        return self.photometric == "MONOCHROME1"

    @property
    def is_palette(self) -> bool:
        """Whether pixels are numbers of colours."""
        return self.photometric == _PALETTE

    @property
    def stored_range(self) -> tuple[int, int]:
        """Smallest and largest number that the stored bits hold."""
        bits = self.bits_stored
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if self.signed else (0, (1 << bits) - 1)

    @property
    def pixel_bytes(self) -> int:
        """Length of the pixel data when it is not compressed, without padding to an even one."""
        values = self.rows * self.columns * self.samples * self.num_frames
        if self.photometric == "YBR_FULL_422":  # two pixels share their colours
            values = self.rows * self.columns * 2 * self.num_frames
        return math.ceil(values * self.bits_allocated / 8)

    @property
    def frame_bytes(self) -> int:
        """Length of one frame once decoded to whole bytes."""
        return self.rows * self.columns * self.samples * max(1, self.bits_allocated // 8)


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Returns a whole number of the header.

    Raises:
        DataError: There is none and no default, or it is none.
    """
    value = element_value(dataset, keyword)
    if value is None and default is not None:
        return default
    try:
        return int(str(value))
    except ValueError:
        raise DataError(f"has no usable {keyword}") from None


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Returns the finite numbers of an element with one value or several; none if it is missing.

    Raises:
        DataError: One is no number or beyond 1e9.
    """
    value = element_value(dataset, keyword)
    if value is None:
        return ()
    values = value if isinstance(value, MultiValue) else [value]
    try:
        result = tuple(float(str(number)) for number in values)
    except ValueError:
        raise DataError(f"has no usable {keyword}") from None
    if not all(math.isfinite(number) and abs(number) <= 1e9 for number in result):
        raise DataError(f"has no usable {keyword}")
    return result


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Returns the texts of an element with one value or several, stripped; none if missing."""
    value = element_value(dataset, keyword)
    if value is None:
        return ()
    values = value if isinstance(value, MultiValue) else [value]
    return tuple(str(text).strip() for text in values)


def element_value(dataset: Dataset, keyword: str | BaseTag) -> Any:
    """Returns the value of an element, None where it is missing or empty.

    Raises:
        DataError: The value is not of the kind that its element holds.
    """
    try:
        value = dataset.get(keyword)
    except Exception:
        # Values are converted when they are first asked for, and a wrong one may raise anything.
        raise DataError(f"has no usable {keyword}") from None
    if isinstance(value, DataElement):  # what a number, other than a keyword, leads to
        value = value.value
    is_empty = value is None or (hasattr(value, "__len__") and len(value) == 0)
    return None if is_empty else value


def frame_holders(dataset: Dataset, frame: int, group: str) -> Iterator[Dataset]:
    """Yields where an attribute of a frame may stand, the most particular place first.

    Args:
        dataset: The whole header.
        frame: Counted from 0.
        group: The functional group's sequence (DICOM PS3.3 C.7.6.16), for files of many frames.
    """
    for sequence, position in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        items = element_value(dataset, sequence)
        if isinstance(items, Sequence) and position < len(items):
            inner = element_value(items[position], group)
            if isinstance(inner, Sequence):
                yield inner[0]
    yield dataset


def _color_space(dataset: Dataset) -> tuple[int, str]:
    samples = integer(dataset, "SamplesPerPixel", 1)
    photometric = "".join(texts(dataset, "PhotometricInterpretation"))
    if not photometric:
        raise DataError("says nothing of its PhotometricInterpretation")
    expected = 3 if photometric in _COLOR else 1
    if photometric not in {*_COLOR, *_GREY, _PALETTE}:
        raise DataError("has a PhotometricInterpretation that is not supported")
    if samples != expected:
        raise DataError(f"says it has {samples} samples per pixel where its kind has {expected}")
    return samples, photometric


def _bits(dataset: Dataset) -> tuple[int, int]:
    """Bits allocated and stored."""
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise DataError("has floating-point pixels, which are not supported")
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    if allocated not in {1, 8, 16, 32} or not 1 <= stored <= allocated:
        raise DataError("stores pixels in another way than 1 to 32 bits in 1, 8, 16 or 32")
    if integer(dataset, "HighBit", stored - 1) != stored - 1:
        raise DataError("stores pixels in other bits than the lowest (HighBit)")
    return allocated, stored


def _padding(dataset: Dataset, *, bits: int, signed: bool) -> tuple[int, int] | None:
    if element_value(dataset, "PixelPaddingValue") is None:
        return None
    first = integer(dataset, "PixelPaddingValue")
    last = integer(dataset, "PixelPaddingRangeLimit", first)
    # Writers often use the wrong one of the two number types: only the stored bits count.
    values = [_wrapped(value, bits=bits, signed=signed) for value in (first, last)]
    return min(values), max(values)


def _wrapped(value: int, *, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >= 1 << bits - 1 else value
