"""From stored numbers to grey: Modality and VOI tables, windows, padding, colours.

Source: DICOM PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (colours), C.7.5.1.1.2
(padding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.data.dicom_header import (
    DicomHeader,
    element_value,
    frame_holders,
    numbers,
    texts,
)
from common.errors import DataError

Values = npt.NDArray[np.floating[Any]]

_MOST_BITS_WITHOUT_WINDOW = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A linear or sigmoid window.

    Attributes:
        name: ``WindowCenterWidthExplanation``.
        center: In rescaled units.
        width: In rescaled units.
        function: LINEAR, LINEAR_EXACT or SIGMOID.
    """

    name: str
    center: float
    width: float
    function: str

    def __post_init__(self):
        smallest = 1.0 if self.function == "LINEAR" else 0.0
        is_known = self.function in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
        if not is_known or self.width <= 0 or self.width < smallest:
            raise DataError("has an unsound window")

    def apply(self, values: Values) -> Values:
        """Maps rescaled values to grey in place; may pass [0, 1], which the caller cuts."""
        match self.function:
            case "LINEAR":
                # The standard's half-pixel convention; a width of 1 is a step.
                values -= self.center - 0.5
                values /= max(self.width - 1, 1e-6)
                values += 0.5
            case "LINEAR_EXACT":
                values -= self.center
                values /= self.width
                values += 0.5
            case _:
                # 1 / (1 + exp(-4 x)), without overflow.
                values -= self.center
                values *= 2 / self.width
                np.tanh(values, out=values)
                values += 1
                values *= 0.5
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupTable:
    """A table that gives each value from ``first`` on another one.

    Attributes:
        name: ``LUTExplanation``.
        first: Value that the first entry stands for; smaller values take the first entry, values
            beyond the last one the last.
        entries: (N,) of ``bits`` bits.
        bits: 8 to 16.
    """

    name: str
    first: int
    entries: npt.NDArray[np.uint16]
    bits: int

    def look_up(self, values: npt.NDArray[Any]) -> Values:
        """Maps values to entries."""
        last = len(self.entries) - 1
        positions = np.clip(np.floor(values) - self.first, 0, last).astype(np.int32)
        return self.entries[positions].astype(np.float32)

    def apply(self, values: Values) -> Values:
        """Maps rescaled values to grey in [0, 1]."""
        return self.look_up(values) / np.float32((1 << self.bits) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class GreyScale:
    """What turns the stored numbers of one frame into rescaled values and those into grey.

    Attributes:
        header: Of the file.
        slope: Of the rescaling; without one, 1.
        intercept: Of the rescaling; without one, 0.
        is_rescaled: Whether the file gives a slope and an intercept.
        unit: ``RescaleType``, empty where the file says nothing.
        table: The Modality table, in place of slope and intercept.
        windows: Windows, then VOI tables, in the file's order.
    """

    header: DicomHeader
    slope: float
    intercept: float
    is_rescaled: bool
    unit: str
    table: LookupTable | None
    windows: tuple[Window | LookupTable, ...]

    @classmethod
    def of(cls, dataset: Dataset, header: DicomHeader, frame: int) -> GreyScale:
        """Reads the grey scale of a frame, counted from 0.

        Raises:
            DataError: A slope, table or window is unsound.
        """
        slope, intercept, unit = _rescale(dataset, frame)
        tables = _tables(dataset, "ModalityLUTSequence", signed=header.signed)
        if len(tables) > 1:
            raise DataError("has several Modality tables")
        signed = header.signed or (not tables and (intercept or 0.0) < 0)
        return cls(
            header=header,
            slope=1.0 if slope is None else slope,
            intercept=0.0 if intercept is None else intercept,
            is_rescaled=slope is not None and intercept is not None and not tables,
            unit=unit,
            table=tables[0] if tables else None,
            windows=(*_windows(dataset, frame), *_tables(dataset, "VOILUTSequence", signed=signed)),
        )

    def rescaled(self, stored: npt.NDArray[Any]) -> Values:
        """Applies the Modality table or the slope and the intercept."""
        if self.table is not None:
            return self.table.look_up(stored)
        # float32 holds 24 bits; wider numbers would lose some.
        dtype = np.float32 if self.header.bits_stored <= 24 else np.float64
        values = stored.astype(dtype)
        if self.slope != 1:
            values *= dtype(self.slope)
        if self.intercept != 0:
            values += dtype(self.intercept)
        return values

    def displayed(self, stored: npt.NDArray[Any], window: str | None) -> npt.NDArray[np.float32]:
        """Returns grey in [0, 1], bright where the tissue is dense, 0 at padding.

        Raises:
            DataError: No window of that name, or numbers too wide to be shown without one.
        """
        chosen = self._choose(window)
        values = self.rescaled(stored)
        grey = self._full_range(values) if chosen is None else chosen.apply(values)
        grey = np.clip(grey, 0.0, 1.0, out=grey).astype(np.float32, copy=False)
        if self.header.is_inverted:
            np.subtract(1, grey, out=grey)
        padded = self.padded(stored)
        if padded is not None:
            grey[padded] = 0
        return grey

    def padded(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Returns where pixels are outside the image; None where the header marks none."""
        if self.header.padding is None:
            return None
        first, last = self.header.padding
        return (stored >= first) & (stored <= last)

    def _choose(self, name: str | None) -> Window | LookupTable | None:
        if name is None:
            return self.windows[0] if self.windows else None
        for window in self.windows:
            if window.name.casefold() == name.strip().casefold():
                return window
        raise DataError(f"has no window of the asked name among its {len(self.windows)}")

    def _full_range(self, values: Values) -> Values:
        if self.table is not None:
            return values / np.float32((1 << self.table.bits) - 1)
        if self.header.bits_stored > _MOST_BITS_WITHOUT_WINDOW:
            raise DataError("stores more than 16 bits and has no window to show them with")
        low, high = (bound * self.slope + self.intercept for bound in self.header.stored_range)
        if high == low:  # one signed bit and the like
            return np.zeros_like(values)
        # A negative slope turns the grey scale around.
        values -= min(low, high)
        values /= abs(high - low)
        return values


def luminance(
    stored: npt.NDArray[Any], header: DicomHeader, photometric: str
) -> npt.NDArray[np.float32]:
    """Turns colours into grey.

    Args:
        stored: (H, W, 3).
        header: Of the file.
        photometric: Of ``stored``.

    Returns:
        (H, W) in [0, 1]: luma as of ITU-R BT.601, which is the first component of YBR.
    """
    scale = np.float32((1 << header.bits_stored) - 1)
    if photometric.startswith("YBR_FULL"):
        grey = stored[..., 0] / scale
    elif photometric == "RGB":
        grey = weighted(stored) / scale
    else:
        raise DataError("has colours of a kind that is not supported")
    return np.clip(grey, 0.0, 1.0).astype(np.float32, copy=False)


def weighted(colors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Returns the luma of (..., 3) red, green and blue, in their own units."""
    # Not a matrix product: BLAS reserves 32 MiB at its first one, and address space is limited.
    grey = colors[..., 0] * np.float32(0.299)
    grey += colors[..., 1] * np.float32(0.587)
    grey += colors[..., 2] * np.float32(0.114)
    return grey


def _rescale(dataset: Dataset, frame: int) -> tuple[float | None, float | None, str]:
    for holder in frame_holders(dataset, frame, "PixelValueTransformationSequence"):
        slopes, intercepts = numbers(holder, "RescaleSlope"), numbers(holder, "RescaleIntercept")
        if slopes and slopes[0] == 0:
            raise DataError("has a rescale slope of 0")
        if slopes or intercepts:
            unit = "".join(texts(holder, "RescaleType"))
            return (slopes or (None,))[0], (intercepts or (None,))[0], unit
    return None, None, ""


def _windows(dataset: Dataset, frame: int) -> tuple[Window, ...]:
    for holder in frame_holders(dataset, frame, "FrameVOILUTSequence"):
        centers, widths = numbers(holder, "WindowCenter"), numbers(holder, "WindowWidth")
        if not centers and not widths:
            continue
        if len(centers) != len(widths):
            raise DataError("has another number of window centres than of widths")
        names = texts(holder, "WindowCenterWidthExplanation")
        function = "".join(texts(holder, "VOILUTFunction")) or "LINEAR"
        return tuple(
            Window(
                name=names[index] if index < len(names) else "",
                center=centers[index],
                width=widths[index],
                function=function,
            )
            for index in range(len(centers))
        )
    return ()


def _tables(dataset: Dataset, keyword: str, *, signed: bool) -> tuple[LookupTable, ...]:
    items = element_value(dataset, keyword)
    if not isinstance(items, Sequence):
        return ()
    return tuple(_table(item, signed=signed) for item in items)


def _table(item: Dataset, *, signed: bool) -> LookupTable:
    """Reads one table; its numbers come as a list, or as bytes where the type is ambiguous."""
    descriptor = _words(element_value(item, "LUTDescriptor"), item)
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        raise DataError("has an unsound lookup table")
    length, first, bits = (int(word) for word in descriptor)
    length = length or 1 << 16
    first = first - (1 << 16) if signed and first >= 1 << 15 else first
    data = element_value(item, "LUTData")
    if bits == 8 and isinstance(data, bytes) and len(data) in {length, length + length % 2}:
        entries = np.frombuffer(data, dtype=np.uint8)[:length].astype(np.uint16)
    else:
        entries = _words(data, item)
    if len(entries) != length:
        raise DataError("has an unsound lookup table")
    most = np.uint16((1 << bits) - 1)
    name = "".join(texts(item, "LUTExplanation"))
    return LookupTable(name=name, first=first, entries=np.minimum(entries, most), bits=bits)


def _words(value: object, item: Dataset) -> npt.NDArray[np.uint16]:
    if isinstance(value, bytes) and len(value) % 2 == 0:
        is_little = item.original_encoding[1] is not False
        return np.frombuffer(value, dtype="<u2" if is_little else ">u2").astype(np.uint16)
    try:
        words = np.asarray(value, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise DataError("has an unsound lookup table") from None
    if words.ndim != 1 or (np.abs(words) > 0xFFFF).any():
        raise DataError("has an unsound lookup table")
    return (words & 0xFFFF).astype(np.uint16)
