"""Frames that claim another size than their header, for a codec to believe."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from client.data.dicom import read_dicom
from client.data.dicom_codestream import check_codestream
from client.data.dicom_header import DicomHeader
from common.errors import DataError

_HEADER = DicomHeader(
    rows=6,
    columns=8,
    num_frames=1,
    samples=1,
    photometric="MONOCHROME2",
    bits_allocated=16,
    bits_stored=12,
    signed=False,
    padding=None,
)
_SYNTAXES = [JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless]
_SIZE = "has a compressed frame of another size than its header says"
_UNSOUND = "has an unsound compressed frame"


def _jpeg(rows: int, columns: int, *, bits: int = 8, marker: int = 0xC0) -> bytes:
    comment = b"\xff\xfe\x00\x08secret"
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 11, bits, rows, columns, 1)
    return b"\xff\xd8" + comment + b"\xff" + frame


@pytest.mark.parametrize(
    ("source", "syntax", "message"),
    [
        (_jpeg(60000, 60000), JPEGBaseline8Bit, _SIZE),
        (_jpeg(6, 9), JPEGBaseline8Bit, _SIZE),
        (_jpeg(6, 8, bits=32), JPEGBaseline8Bit, "of more bits than its header says"),
        (_jpeg(6, 8, marker=0xC2), JPEGBaseline8Bit, "of another kind than its transfer syntax"),
        (_jpeg(6, 8, marker=0xDA), JPEGBaseline8Bit, _UNSOUND),
        (_jpeg(6, 8)[:-9], JPEGBaseline8Bit, _UNSOUND),
        (b"", JPEGBaseline8Bit, _UNSOUND),
        (struct.pack("<I", 3) + bytes(200), RLELossless, _UNSOUND),
        (struct.pack("<I", 2) + bytes(30), RLELossless, _UNSOUND),
        (b"\xff\x4f\xff\x51" + bytes(60), JPEG2000Lossless, _UNSOUND),
        (b"secret", JPEG2000Lossless, _UNSOUND),
    ],
)
def test_unsound_frames(source: bytes, syntax: UID, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_codestream(source, syntax, _HEADER)


def test_a_sound_frame_tells_its_precision() -> None:
    assert check_codestream(_jpeg(6, 8), JPEGBaseline8Bit, _HEADER) == 8
    assert check_codestream(_jpeg(6, 8, bits=12, marker=0xC3), JPEGLosslessSV1, _HEADER) == 12


@given(st.binary(max_size=200), st.sampled_from(_SYNTAXES))
def test_no_bytes_raise_anything_else(source: bytes, syntax: UID) -> None:
    start = b"\xff\x4f\xff\x51" if syntax == JPEG2000Lossless else b"\xff\xd8"
    for content in (source, start + source):
        with contextlib.suppress(DataError):
            assert 1 <= check_codestream(content, syntax, _HEADER) <= 16


@pytest.mark.parametrize(
    ("syntax", "start", "offset"),
    [(JPEG2000Lossless, b"\xff\x51", 6), (JPEGLSLossless, b"\xff\xf7", 5)],
)
def test_a_codec_is_never_asked_for_gigabytes(
    write_dicom: Callable[..., Path],
    take_in: Callable[..., object],
    syntax: UID,
    start: bytes,
    offset: int,
) -> None:
    sizes = {"Rows": 64, "Columns": 64, "PixelData": bytes(64 * 64 * 2)}
    path = write_dicom(syntax, **sizes)
    dataset = pydicom.dcmread(path)
    frame = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    position = frame.index(start) + offset
    frame[position : position + 2] = b"\xff\xff"
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset.save_as(path)
    read_dicom(write_dicom())  # the decoder is up before it is measured
    dataset.save_as(path)
    reading = take_in(read_dicom, path)
    assert reading.refusal == _SIZE
    assert reading.decoder_bytes < 1 << 20


def test_runs_that_cannot_fill_the_frame(write_dicom: Callable[..., Path]) -> None:
    path = write_dicom(RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 8000
    dataset.save_as(path)
    with pytest.raises(DataError, match=_SIZE):
        read_dicom(path)
