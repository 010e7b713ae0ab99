from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from client.data.dicom import read_dicom, read_dicom_volume
from common.errors import DataError

WriteDicom = Callable[..., Path]


def _compress_jpeg(path: Path) -> None:
    """Compresses a native file in place, frame by frame; pydicom has no encoder for it."""
    dataset = pydicom.dcmread(path)
    native, num_frames = dataset.PixelData, int(dataset.get("NumberOfFrames", 1))
    length = len(native) // num_frames
    frames = []
    for start in range(0, len(native), length):
        dataset.PixelData, dataset.NumberOfFrames = native[start : start + length], 1
        dataset.save_as(path)
        frames.append(_compressed_frame(path))
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData, dataset.NumberOfFrames = encapsulate(frames), num_frames
    dataset.save_as(path)


def _compressed_frame(path: Path) -> bytes:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))


def _numbers(bits: int, is_signed: bool, num_frames: int) -> np.ndarray:
    low = -(1 << bits - 1) if is_signed else 0
    dtype = np.dtype(f"{'i' if is_signed else 'u'}{1 if bits <= 8 else 2}")
    random = np.random.default_rng(bits)
    return random.integers(low, low + (1 << bits), (num_frames, 64, 48)).astype(dtype)


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize(
    ("bits", "is_signed"), [(8, False), (10, False), (12, True), (16, False), (16, True)]
)
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1],
)
def test_lossless_codecs(
    write_dicom: WriteDicom, syntax: str, bits: int, is_signed: bool, num_frames: int
) -> None:
    numbers = _numbers(bits, is_signed, num_frames)
    path = write_dicom(
        ExplicitVRLittleEndian if syntax == JPEGLosslessSV1 else syntax,
        Rows=64,
        Columns=48,
        NumberOfFrames=num_frames,
        BitsAllocated=8 * numbers.itemsize,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=int(is_signed),
        PixelData=numbers.tobytes(),
    )
    if syntax == JPEGLosslessSV1:
        _compress_jpeg(path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    low = -(1 << bits - 1) if is_signed else 0
    expected = (numbers.astype(np.float64) - low) / ((1 << bits) - 1)
    assert np.allclose(read_dicom_volume(path), expected, atol=1e-6)
    assert np.allclose(read_dicom(path, frame=num_frames), expected[-1], atol=1e-6)


@pytest.mark.parametrize("num_found", [1, 2, 4])
@pytest.mark.parametrize("has_table", [False, True])
def test_another_number_of_frames(write_dicom: WriteDicom, num_found: int, has_table: bool) -> None:
    numbers = _numbers(12, False, 3)
    path = write_dicom(
        RLELossless, Rows=64, Columns=48, NumberOfFrames=3, PixelData=numbers.tobytes()
    )
    dataset = pydicom.dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData = encapsulate([*frames, *frames][:num_found], has_bot=has_table)
    dataset.save_as(path)
    with pytest.raises(DataError, match=r"another number of compressed frames|cannot be decoded"):
        read_dicom_volume(path)


@pytest.mark.parametrize("side", [64, 1024])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
def test_memory_stays_near_the_honest_size(
    write_dicom: WriteDicom, take_in: Callable[..., object], syntax: str, side: int
) -> None:
    numbers = np.random.default_rng(0).integers(0, 4096, (side, side), dtype=np.uint16)
    path = write_dicom(
        ExplicitVRLittleEndian if syntax == JPEGLosslessSV1 else syntax,
        Rows=side,
        Columns=side,
        PixelData=numbers.tobytes(),
    )
    if syntax == JPEGLosslessSV1:
        _compress_jpeg(path)
    read_dicom(path)
    reading = take_in(read_dicom, path)
    assert reading.refusal is None
    assert reading.times(floor=1 << 20) <= 10


def test_a_jpeg_under_another_name(write_dicom: WriteDicom) -> None:
    path = write_dicom(JPEGLSLossless)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.save_as(path)
    with pytest.raises(DataError, match="has a compressed frame of another kind than its"):
        read_dicom(path)
