"""Opening a DICOM file without trusting it: the elements that are needed and no others.

Runs in the decoder's process (`client.data.dicom_worker`), where memory and time are limited.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from client.data.dicom_header import PIXEL_KEYWORDS, DicomHeader
from common.errors import DataError

MAX_FILE_BYTES = 1 << 29
"""Largest file that is opened: 512 MiB."""

_COLORS = ("Red", "Green", "Blue")
_PIXEL_KEYWORDS = (
    *("Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored"),
    *("HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction"),
    *("VOILUTSequence", "ImageLaterality", "Laterality"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in _COLORS),
    *(f"{color}PaletteColorLookupTableData" for color in _COLORS),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in _COLORS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *PIXEL_KEYWORDS,
)
_PIXEL_TAGS = tuple(tag for keyword in _PIXEL_KEYWORDS if (tag := tag_for_keyword(keyword)))
_FIRST_INFLATED_BYTES = 1 << 20  # must hold everything before the pixels of a deflated file
_SLACK_BYTES = 1 << 16  # what may stand behind the pixels: padding, signatures


def open_dataset(path: Path, tags: Sequence[int] | None = None) -> Dataset:
    """Reads elements of a DICOM file.

    Args:
        path: A file with the 128-byte preamble.
        tags: Elements at the top of the header, all before the pixels; None for the pixels and
            all that they need.

    Raises:
        DataError: Not a DICOM file, too large, without a transfer syntax, or deflated and growing
            beyond what its header says.
    """
    with path.open("rb") as file:
        _check_start(file)
        meta = read_file_meta_info(path)
        syntax = meta.get("TransferSyntaxUID")
        if not syntax:
            raise DataError("names no transfer syntax")
        source: BinaryIO = file
        if syntax == DeflatedExplicitVRLittleEndian:
            length = int(meta.get("FileMetaInformationGroupLength") or 0)
            file.seek(144 + length)  # preamble, prefix and the element that holds the length
            source = _inflated(file.read(), tags)
        source.seek(0)
        return _parse(source, tags)


def _check_start(file: BinaryIO) -> None:
    size = file.seek(0, 2)
    if size > MAX_FILE_BYTES:
        raise DataError(f"is a file of {size >> 20} MiB; the limit is {MAX_FILE_BYTES >> 20} MiB")
    file.seek(128)
    if file.read(4) != b"DICM":
        raise DataError("is not a DICOM file (it has no DICM prefix)")
    file.seek(0)


def _parse(source: BinaryIO, tags: Sequence[int] | None) -> Dataset:
    if tags is None:
        return pydicom.dcmread(source, specific_tags=list(_PIXEL_TAGS))
    return pydicom.dcmread(source, specific_tags=list(tags), stop_before_pixels=True)


def _inflated(packed: bytes, tags: Sequence[int] | None) -> BinaryIO:
    """Inflates in two steps: the header, then no more than the header says."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    start = _plain_start() + inflater.decompress(packed, _FIRST_INFLATED_BYTES)
    if tags is not None or inflater.eof:
        return BytesIO(start)
    header = DicomHeader.of(_parse(BytesIO(start), _PIXEL_TAGS))
    rest = inflater.decompress(inflater.unconsumed_tail, header.pixel_bytes + _SLACK_BYTES)
    if not inflater.eof:
        raise DataError("inflates to more than its header says")
    return BytesIO(start + rest)


def _plain_start() -> bytes:
    """The start of a file whose content is what a deflated one holds once inflated."""
    syntax = ExplicitVRLittleEndian.encode()
    syntax += b"\x00" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(syntax)) + syntax
    return bytes(128) + b"DICM" + element
