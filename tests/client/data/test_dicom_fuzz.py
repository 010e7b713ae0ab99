"""Damaged and hostile files: pydicom's own, with header, pixels and structure changed at random.

The seed of a file is its number, so that one which fails can be made again:
``_mutated(number)``.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from client.data.dicom import (
    read_dicom,
    read_dicom_volume,
    read_hounsfield,
    read_tags,
)
from common.errors import DataError

_FOLDER = Path(pydicom.__file__).parent / "data"
_NAMES = [
    "CT_small",
    "MR_small_RLE",
    "MR_small_implicit",
    "MR_small_bigendian",
    "MR_small_jp2klossless",
    "MR_small_jpeg_ls_lossless",
    "JPEG2000",
    "JPEG-lossy",
    "JPEGLSNearLossless_16",
    "693_J2KI",
    "image_dfl",
    "SC_rgb_jpeg_gdcm",
    "SC_rgb_jpeg_dcmtk",
    "SC_rgb_jls_lossy_sample",
    "SC_rgb_rle_16bit_2frame",
    "SC_rgb_gdcm_KY",
    "SC_rgb_dcmtk_+eb+cy+s2",
    "SC_rgb_small_odd",
    "SC_ybr_full_422_uncompressed",
    "liver_1frame",
    "rtdose_rle",
    "examples_palette",
    "examples_overlay",
    "examples_ybr_color",
]
_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 17, 32, 255, 256, 4096, 8192, 32767, 32768, 60000, 65535)
_LENGTHS = (0, 1, 2, 6, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_TAGS = [
    *(0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100),
    *(0x00280101, 0x00280102, 0x00280103, 0x00281050, 0x00281051, 0x00281052, 0x00281053),
    *(0x00020010, 0x7FE00010, 0x00281101, 0x00281201, 0x00280120, 0x00080005),
]
# A text of ours and at most the name of an exception: nothing of a file.
_REFUSAL = re.compile(
    r"(is|has|says|names|needs|stores|numbers|takes|inflates|cannot|does)[\w .,:;()\[\]/-]+"
)


@cache
def _content(name: str) -> bytes:
    return (_FOLDER / "test_files" / f"{name}.dcm").read_bytes()


def _mutated(number: int) -> bytes:
    """Returns the fuzzer's file of that number."""
    random = np.random.default_rng(number)
    content = bytearray(_content(_NAMES[int(random.integers(len(_NAMES)))]))
    for _ in range(int(random.integers(1, 4))):
        if len(content) < 200:
            break
        _MUTATIONS[int(random.integers(len(_MUTATIONS)))](content, random)
    return bytes(content)


def _split(content: bytearray) -> int:
    """Where the pixels begin, nearly."""
    found = [content.find(tag) for tag in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")]
    return max(140, *found)


def _flip_header(content: bytearray, random: np.random.Generator) -> None:
    end = min(_split(content) + 40, len(content))
    for position in random.integers(132, end, int(random.integers(1, 9))):
        content[position] = random.integers(256)


def _flip_pixels(content: bytearray, random: np.random.Generator) -> None:
    start = min(_split(content), len(content) - 2)
    for position in random.integers(start, len(content), int(random.integers(1, 33))):
        content[position] = random.integers(256)


def _flip_codestream_start(content: bytearray, random: np.random.Generator) -> None:
    start = min(_split(content), len(content) - 2)
    for position in random.integers(start, min(start + 160, len(content)), 3):
        content[position] = random.choice([0, 1, 127, 128, 254, 255])


def _cut(content: bytearray, random: np.random.Generator) -> None:
    del content[int(random.integers(100, len(content))) :]


def _splice(content: bytearray, random: np.random.Generator) -> None:
    first, second, length = (int(number) for number in random.integers(132, len(content), 3))
    content[first:first] = content[second : second + length % 4096]


def _zero(content: bytearray, random: np.random.Generator) -> None:
    start = int(random.integers(132, len(content)))
    length = min(int(random.integers(1, 64)), len(content) - start)
    content[start : start + length] = bytes(length)


def _change_element(content: bytearray, random: np.random.Generator) -> None:
    """Writes a number, a text or a length where an element that decides on memory stands."""
    tag = int(random.choice(_TAGS))
    order = random.choice(["<", ">"])
    position = content.find(struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF), 132)
    if position < 0 or position + 12 > len(content):
        return
    match int(random.integers(3)):
        case 0:
            number = int(random.choice(_NUMBERS))
            content[position + 8 : position + 10] = struct.pack(f"{order}H", number)
        case 1:
            length = int(random.choice(_LENGTHS))
            where = position + int(random.choice([4, 6, 8]))
            content[where : where + 4] = struct.pack(f"{order}I", length)
        case _:
            text = random.choice([b"1e308\\-1", b"99999999", b"-1      ", b"nan     ", b"PALETTE "])
            content[position + 8 : position + 16] = text


_MUTATIONS: list[Callable[[bytearray, np.random.Generator], None]] = [
    _flip_header,
    _flip_pixels,
    _flip_codestream_start,
    _cut,
    _splice,
    _zero,
    _change_element,
    _change_element,
]
_READS: list[tuple[str, Callable[[Path], Any]]] = [
    ("image", read_dicom),
    ("volume", read_dicom_volume),
    ("hounsfield", read_hounsfield),
    ("mirrored", lambda path: read_dicom(path, frame=1, side="L")),
    ("tags", lambda path: read_tags(path, ["PatientID", "Rows", "WindowCenter", "0008,0005"])),
]


def _check(number: int, path: Path, take_in: Callable[..., Any]) -> str:
    """Reads the file of that number one way; returns what came of it."""
    path.write_bytes(_mutated(number))
    name, read = _READS[number % len(_READS)]
    reading = take_in(read, path)
    assert reading.times(floor=32 << 20) <= 10, number
    if reading.refusal is not None:
        assert _REFUSAL.fullmatch(reading.refusal), (number, reading.refusal)
        return re.sub(r"\d+", "N", reading.refusal)
    if name not in {"tags", "hounsfield"}:
        assert np.isfinite(reading.result).all(), number
        assert reading.result.min() >= 0, number
        assert reading.result.max() <= 1, number
    return "read"


def _check_all(numbers: range, path: Path, take_in: Callable[..., Any]) -> Counter[str]:
    path.write_bytes(_content("CT_small"))
    read_dicom(path)  # the decoder is up before it is measured
    outcomes = Counter(_check(number, path, take_in) for number in numbers)
    path.write_bytes(_content("CT_small"))
    assert read_dicom(path).shape == (128, 128)
    return outcomes


def test_400_files(tmp_path: Path, take_in: Callable[..., Any]) -> None:
    outcomes = _check_all(range(400), tmp_path / "file.dcm", take_in)
    assert outcomes["read"] > 100
    assert len(outcomes) > 20  # the files are damaged in many ways


@pytest.mark.long
def test_10_000_files(tmp_path: Path, take_in: Callable[..., Any]) -> None:
    outcomes = _check_all(range(10_000), tmp_path / "file.dcm", take_in)
    print(*(f"{count:6} {reason}" for reason, count in outcomes.most_common()), sep="\n")
    assert outcomes["read"] > 2500


def test_a_file_can_be_made_again() -> None:
    assert _mutated(7) == _mutated(7) != _mutated(8)


def test_the_fuzzer_would_see_a_header_that_leaks(tmp_path: Path) -> None:
    assert _REFUSAL.fullmatch("has no usable Rows")
    assert not _REFUSAL.fullmatch("cannot open /data/Doe^John.dcm\nat line 3")
    with pytest.raises(DataError):
        read_dicom(tmp_path / "missing.dcm")
