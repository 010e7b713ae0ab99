"""pydicom's own functions are the oracle, on every file of its collection that both read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from client.data.dicom import read_dicom_volume, read_hounsfield_volume
from client.data.dicom_grey import GreyScale
from client.data.dicom_header import DicomHeader
from common.errors import DataError

_FILES = sorted(
    path
    for path in (Path(pydicom.__file__).parent / "data").rglob("*")
    if path.is_file() and path.suffix not in {".py", ".pyc"}
)


_RGB = np.array([0.299, 0.587, 0.114])


def _pydicom_grey(dataset: Dataset) -> np.ndarray:
    """(D, H, W) in [0, 1] by pydicom alone, or an exception where it cannot."""
    pixels = dataset.pixel_array
    shape = (int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.size > np.prod(shape):  # pydicom has made RGB of it
        return (pixels @ _RGB / np.iinfo(pixels.dtype).max).reshape(shape)
    values = apply_modality_lut(pixels, dataset).astype(np.float64)
    if dataset.get("WindowCenter") is not None:
        values = apply_voi_lut(values, dataset, prefer_lut=False)
    low, high = _shown_range(dataset)
    grey = np.clip((values - low) / (high - low), 0, 1).reshape(shape)
    return 1 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _shown_range(dataset: Dataset) -> tuple[float, float]:
    """pydicom spreads a window over the rescaled range of the stored bits."""
    bits = dataset.BitsStored
    low = -(1 << bits - 1) if dataset.PixelRepresentation else 0
    slope = float(dataset.get("RescaleSlope") or 1)
    low = low * slope + float(dataset.get("RescaleIntercept") or 0)
    return low, low + ((1 << bits) - 1) * slope


@pytest.mark.filterwarnings("ignore")  # pydicom warns of its own files
def test_every_file_that_pydicom_shows_too() -> None:
    differences: dict[str, list[float]] = {"YBR": [], "other": []}
    deep_jpegs = []
    for path in _FILES:
        try:
            ours = read_dicom_volume(path)
        except DataError:
            continue
        dataset = pydicom.dcmread(path)
        try:
            expected = _pydicom_grey(dataset)
        except RuntimeError:
            deep_jpegs.append(path.name)
            continue
        assert ours.shape == expected.shape
        if "PixelPaddingValue" in dataset:
            expected[ours == 0] = 0
        kind = "YBR" if dataset.PhotometricInterpretation.startswith("YBR_FULL") else "other"
        differences[kind].append(float(np.abs(ours - expected).max()))
    assert len(differences["other"]) == 83
    assert max(differences["other"]) < 1e-6
    # pydicom goes through RGB, where colours that no screen has are cut; we take the luma itself.
    assert len(differences["YBR"]) == 10
    assert max(differences["YBR"]) < 0.035
    assert deep_jpegs == ["JPEG-lossy.dcm", "JPGExtended.dcm"]


def test_a_jpeg_of_12_bits() -> None:
    # pydicom asks no free codec for it; the values are those of its tests (pylibjpeg-libjpeg).
    path = next(path for path in _FILES if path.name == "JPEG-lossy.dcm")
    stored = read_dicom_volume(path)[0] * 4095
    assert np.allclose([stored[420, 140], stored[230, 120]], [244, 95], atol=1e-3)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@given(
    center=st.floats(-2000, 2000),
    width=st.floats(1.5, 5000),
    slope=st.floats(0.1, 4),
    intercept=st.floats(-1024, 1024),
)
def test_any_window(
    function: str, center: float, width: float, slope: float, intercept: float
) -> None:
    dataset = Dataset()
    dataset.Rows, dataset.Columns = 16, 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation = 16, 12, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.8g}", f"{intercept:.8g}"
    dataset.WindowCenter, dataset.WindowWidth = f"{center:.8g}", f"{width:.8g}"
    dataset.VOILUTFunction = function
    stored = np.linspace(-2048, 2047, 256).astype(np.int16).reshape(16, 16)
    ours = GreyScale.of(dataset, DicomHeader.of(dataset), 0).displayed(stored, None)
    with np.errstate(over="ignore"):
        values = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    low, high = _shown_range(dataset)
    assert np.abs(ours - (values - low) / (high - low)).max() < 1e-3
    assert ours.min() >= 0
    assert ours.max() <= 1


@given(
    first=st.integers(0, 65535),
    bits=st.sampled_from([10, 12, 16]),  # with 8, pydicom wraps positions beyond 255
    is_signed=st.booleans(),
    length=st.integers(2, 64),
    seed=st.integers(0, 2**32),
)
@example(first=40000, bits=12, is_signed=True, length=8, seed=1)
def test_any_table(first: int, bits: int, is_signed: bool, length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    entries = random.integers(0, 1 << bits, length)
    item = Dataset()
    first = first - 65536 if is_signed and first > 32767 else first
    item.add_new(0x00283002, "SS" if is_signed else "US", [length, first, bits])
    item.add_new(0x00283006, "US", entries.tolist())
    dataset = Dataset()
    dataset.Rows, dataset.Columns = 8, 8
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.PixelRepresentation = int(is_signed)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.VOILUTSequence = [item]
    stored = random.integers(0, 65536, (8, 8)).astype(np.int16 if is_signed else np.uint16)
    stored[0] = first
    ours = GreyScale.of(dataset, DicomHeader.of(dataset), 0).displayed(stored, None)
    expected = apply_voi_lut(stored.astype(np.int64), dataset)
    assert np.allclose(ours, expected / ((1 << bits) - 1), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_hounsfield_units_of_every_ct() -> None:
    num_files = 0
    for path in _FILES:
        try:
            ours = read_hounsfield_volume(path)
        except DataError:
            continue
        num_files += 1
        dataset = pydicom.dcmread(path)
        expected = apply_modality_lut(dataset.pixel_array, dataset)
        if "PixelPaddingValue" in dataset:
            expected = np.where(dataset.pixel_array == dataset.PixelPaddingValue, -1000, expected)
        assert np.abs(ours[0] - expected).max() < 1e-3
    assert num_files == 14
