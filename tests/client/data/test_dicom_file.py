"""Files that are larger inside than outside."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.data.dicom import read_dicom, read_tags
from client.data.dicom_file import MAX_FILE_BYTES
from client.data.image import read_image
from common.errors import DataError

WriteDicom = Callable[..., Path]
_FLOOR = 32 << 20  # what the decoder may use of its own for any file
_PIXELS = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 96)


def _insert(path: Path, extra: bytes) -> None:
    """Puts bytes before the pixels of a native file."""
    content = path.read_bytes()
    position = content.index(_PIXELS)
    path.write_bytes(content[:position] + extra + content[position:])


def _append_inflated(path: Path, num_zeros: int) -> None:
    """Lets a deflated file inflate to more."""
    content = path.read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS))
    zeros = bytes(1 << 20)
    packed += b"".join(packer.compress(zeros) for _ in range(num_zeros >> 20)) + packer.flush()
    path.write_bytes(content[:start] + packed)


def test_a_deflated_file_may_hold_more_than_one_step(write_dicom: WriteDicom) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (1200, 1000), dtype=np.uint16)
    sizes = {"Rows": 1200, "Columns": 1000, "PixelData": stored.tobytes()}
    path = write_dicom(DeflatedExplicitVRLittleEndian, **sizes)
    assert np.allclose(read_dicom(path), stored / 4095, atol=1e-6)


def test_a_deflated_bomb(write_dicom: WriteDicom, take_in: Callable[..., object]) -> None:
    path = write_dicom(DeflatedExplicitVRLittleEndian)
    read_dicom(path)  # the decoder is up before it is measured
    _append_inflated(path, 400 << 20)
    assert path.stat().st_size < 1 << 19
    reading = take_in(read_dicom, path)
    assert reading.refusal == "inflates to more than its header says"
    assert reading.times(floor=_FLOOR) <= 10
    reading = take_in(lambda bomb: read_tags(bomb, ["Rows"]), path)
    assert reading.result == {"Rows": ("6",)}
    assert reading.times(floor=_FLOOR) <= 10


def test_a_header_of_many_small_elements(
    write_dicom: WriteDicom, take_in: Callable[..., object]
) -> None:
    path = write_dicom()
    expected = read_dicom(path)
    elements = (struct.pack("<HH2sH", 0x7001, n & 0xFFFF, b"LO", 0) for n in range(50_000))
    _insert(path, b"".join(elements))
    reading = take_in(read_dicom, path)
    assert np.array_equal(reading.result, expected)
    assert reading.times(floor=_FLOOR) <= 10


def _items(count: int) -> bytes:
    """A sequence of many nearly empty items, each of which becomes a data set of Python."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 8) + struct.pack("<HH2sH", 8, 0x0050, b"SH", 0)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return struct.pack("<HH2sHI", 0x7001, 0x1000, b"SQ", 0, 0xFFFFFFFF) + item * count + end


def test_a_sequence_of_many_items(write_dicom: WriteDicom, take_in: Callable[..., object]) -> None:
    path = write_dicom()
    expected = read_dicom(path)
    _insert(path, _items(60_000))
    reading = take_in(read_dicom, path)
    assert reading.refusal == "takes more memory to decode than its size allows"
    assert reading.times(floor=_FLOOR) <= 10
    assert np.array_equal(read_dicom(write_dicom()), expected)


def test_sequences_inside_each_other(write_dicom: WriteDicom) -> None:
    path = write_dicom()
    opening = struct.pack("<HH2sHI", 0x7001, 0x1000, b"SQ", 0, 0xFFFFFFFF)
    opening += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    _insert(path, opening * 100_000)
    with pytest.raises(DataError, match=r"^cannot be decoded \(RecursionError\)$"):
        read_dicom(path)


def test_dicom_inside_gzip_is_named_as_such(write_dicom: WriteDicom) -> None:
    path = write_dicom()
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="is a DICOM file inside gzip; unpack it first"):
        read_image(path)


def test_a_file_beyond_the_limit_is_not_read(write_dicom: WriteDicom) -> None:
    path = write_dicom()
    os.truncate(path, MAX_FILE_BYTES + 1)  # a sparse file takes no space
    for read in (read_dicom, read_image):
        with pytest.raises(DataError, match="is a file of 512 MiB; the limit is 512 MiB"):
            read(path)


def test_no_dicom_no_file_no_end(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"secret" * 100)
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("text", "is not a DICOM file (it has no DICM prefix)"),
        ("missing", "cannot be opened (FileNotFoundError)"),
        ("pipe", "is not a regular file"),
        ("", "is not a regular file"),
    ):
        with pytest.raises(DataError) as error:
            read_dicom(tmp_path / name)
        assert str(error.value) == message
    with pytest.raises(DataError, match="is not a regular file"):
        read_image(tmp_path / "pipe")
