"""The size that a compressed frame claims, read before a codec takes memory for it.

A codec believes the frame and not the DICOM header around it: a frame of 300 bytes may ask for
gigabytes. So the frame's own size must be the header's, and its process one that the transfer
syntax names. Sources: ITU-T T.81 B.2 (JPEG), T.87 C.2 (JPEG-LS), T.800 A.5 (JPEG 2000), DICOM
PS3.5 annex G (RLE).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from client.data.dicom_header import DicomHeader
from common.errors import DataError

_PROCESSES = {
    JPEGBaseline8Bit: {0xC0},
    JPEGExtended12Bit: {0xC0, 0xC1},
    JPEGLossless: {0xC3},
    JPEGLosslessSV1: {0xC3},
    JPEGLSLossless: {0xF7},
    JPEGLSNearLossless: {0xF7},
}
_START_OF_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG2000_START = b"\xff\x4f\xff\x51"
_RLE_RATIO = 64  # two bytes stand for at most 128


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSize:
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    components: int
    precision: int


def check_codestream(source: bytes, syntax: UID, header: DicomHeader) -> int:
    """Refuses a compressed frame that is not what its header says.

    Args:
        source: One frame, compressed.
        syntax: Its transfer syntax.
        header: Of the whole file.

    Returns:
        The frame's own precision, in bits.

    Raises:
        DataError: The frame is of another size or another compression, or it is unsound.
    """
    if syntax == RLELossless:
        _check_rle(source, header)
        return header.bits_stored
    try:
        if syntax in JPEG2000TransferSyntaxes:
            size = _jpeg2000_size(source)
        else:
            size = _jpeg_size(source, _PROCESSES[syntax])
    except (struct.error, IndexError):
        raise DataError("has an unsound compressed frame") from None
    claimed = (size.rows, size.columns, size.components)
    if claimed != (header.rows, header.columns, header.samples):
        raise DataError("has a compressed frame of another size than its header says")
    if size.precision > header.bits_allocated:
        raise DataError("has a compressed frame of more bits than its header says")
    return size.precision


def _check_rle(source: bytes, header: DicomHeader) -> None:
    num_segments = header.samples * max(1, header.bits_allocated // 8)
    if len(source) < 64 or struct.unpack_from("<I", source)[0] != num_segments:
        raise DataError("has an unsound compressed frame")
    if len(source) * _RLE_RATIO < header.frame_bytes:
        raise DataError("has a compressed frame of another size than its header says")


def _jpeg_size(source: bytes, processes: set[int]) -> FrameSize:
    """Walks the segments up to the start of the frame."""
    if source[:2] != b"\xff\xd8":
        raise DataError("has an unsound compressed frame")
    position = 2
    while True:
        if source[position] != 0xFF:
            raise DataError("has an unsound compressed frame")
        marker = source[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _START_OF_FRAMES:
            break
        if marker in {0xD9, 0xDA}:  # end of image, start of scan: no frame before it
            raise DataError("has an unsound compressed frame")
        position += 2 + struct.unpack_from(">H", source, position + 2)[0]
    if marker not in processes:
        raise DataError("has a compressed frame of another kind than its transfer syntax")
    precision, rows, columns, components = struct.unpack_from(">BHHB", source, position + 4)
    return FrameSize(rows=rows, columns=columns, components=components, precision=precision)


def _jpeg2000_size(source: bytes) -> FrameSize:
    """Reads the SIZ segment, which opens every codestream."""
    start = source[:4096].find(_JPEG2000_START)  # a JP2 wrapper stands before it in some files
    if start < 0:
        raise DataError("has an unsound compressed frame")
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", source, start + 8)
    (components,) = struct.unpack_from(">H", source, start + 40)
    if not tile_width or not tile_height or not 1 <= components <= 4:
        raise DataError("has an unsound compressed frame")
    parts = [source[start + 42 + 3 * number :][:3] for number in range(components)]
    if any(part[1:] != b"\x01\x01" or part[0] != parts[0][0] for part in parts):
        raise DataError("has a compressed frame whose components differ in size or kind")
    precision = (parts[0][0] & 0x7F) + 1
    return FrameSize(
        rows=bottom - top, columns=right - left, components=components, precision=precision
    )
