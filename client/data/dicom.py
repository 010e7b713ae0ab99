"""One grey DICOM image as its display shows it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.data.image import check_size
from common.errors import DataError


def read_dicom(path: Path) -> npt.NDArray[np.float32]:
    """Reads a single-frame MONOCHROME1 or MONOCHROME2 image.

    Rescale slope and intercept, then the first window of the file (DICOM PS3.3 C.11.2.1.2), or
    without a window the full range of the stored bits; MONOCHROME1 is inverted, so that bright
    always means dense. Lookup tables, colour and several frames are refused rather than shown
    wrongly.

    Args:
        path: A DICOM file with its 128-byte preamble.

    Returns:
        (H, W) in [0, 1].

    Raises:
        DataError: The header is unsound or asks for something that is not supported.
    """
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        # Inflating happens while the header is parsed, before any size can be checked.
        raise DataError("is a deflated DICOM file; that transfer syntax is not supported")
    dataset = pydicom.dcmread(path)
    inverted = _check_header(dataset)
    low, high = _stored_range(dataset)
    slope, intercept = _rescale(dataset)
    window = _window(dataset)
    pixels = dataset.pixel_array.astype(np.float32)
    if pixels.shape != (dataset.Rows, dataset.Columns):
        raise DataError("has pixel data of another size than its header says")
    if window is None:
        unit = (pixels - np.float32(low)) / np.float32(high - low)
        # A negative slope turns the grey scale around.
        unit = unit if slope > 0 else 1 - unit
    else:
        unit = window.apply(pixels * np.float32(slope) + np.float32(intercept))
    unit = np.clip(unit, 0.0, 1.0)
    return 1 - unit if inverted else unit


class _Window:
    """Centre, width and shape of the first VOI window."""

    def __init__(self, center: float, width: float, function: str):
        smallest = 1.0 if function == "LINEAR" else 0.0
        if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"} or width <= 0 or width < smallest:
            raise DataError("has an unsound window")
        self._center = center
        self._width = width
        self._function = function

    def apply(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        match self._function:
            case "LINEAR":
                # The standard's half-pixel convention; a width of 1 is a step.
                span = max(self._width - 1, 1e-6)
                return (values - np.float32(self._center - 0.5)) / np.float32(span) + 0.5
            case "LINEAR_EXACT":
                return (values - np.float32(self._center)) / np.float32(self._width) + 0.5
            case _:
                steps = (values - np.float32(self._center)) / np.float32(self._width)
                return np.float32(0.5) * (
                    1 + np.tanh(2 * steps)
                )  # 1 / (1 + exp(-4 x)), without overflow


def _check_header(dataset: Dataset) -> bool:
    """Checks what decides the memory and the meaning of pixels; returns whether to invert."""
    check_size(_integer(dataset, "Rows"), _integer(dataset, "Columns"))
    if _integer(dataset, "NumberOfFrames", 1) != 1:
        raise DataError("has several frames; only single images can be read")
    photometric = dataset.get("PhotometricInterpretation")
    if _integer(dataset, "SamplesPerPixel", 1) != 1 or photometric not in {
        "MONOCHROME1",
        "MONOCHROME2",
    }:
        raise DataError("is not MONOCHROME1 or MONOCHROME2; colour is not supported")
    has_table = bool(dataset.get("VOILUTSequence")) and dataset.get("WindowCenter") is None
    if dataset.get("ModalityLUTSequence") or has_table:
        raise DataError("needs a lookup table (Modality or VOI LUT), which is not supported")
    if "PixelData" not in dataset:
        raise DataError("has no integer pixel data")
    return photometric == "MONOCHROME1"


def _stored_range(dataset: Dataset) -> tuple[int, int]:
    """Smallest and largest value that the stored bits can hold."""
    bits = _integer(dataset, "BitsStored")
    if not 1 <= bits <= 16 or _integer(dataset, "BitsAllocated") not in {8, 16}:
        raise DataError("stores pixels in another way than 1 to 16 bits in 8 or 16")
    signed = _integer(dataset, "PixelRepresentation", 0)
    if signed not in {0, 1}:
        raise DataError("says neither signed nor unsigned of its pixels")
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope = _number(dataset, "RescaleSlope", 1.0)
    if slope == 0:
        raise DataError("has a rescale slope of 0")
    return slope, _number(dataset, "RescaleIntercept", 0.0)


def _window(dataset: Dataset) -> _Window | None:
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    center, width = _number(dataset, "WindowCenter", 0.0), _number(dataset, "WindowWidth", 0.0)
    return _Window(center, width, function)


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int(str(value))
    except ValueError:
        raise DataError(f"has no usable {keyword}") from None


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    if value is None:
        return default
    try:
        number = float(str(value))
    except ValueError:
        raise DataError(f"has no usable {keyword}") from None
    if not math.isfinite(number) or abs(number) > 1e9:
        raise DataError(f"has no usable {keyword}")
    return number
