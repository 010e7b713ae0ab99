"""One DICOM file from its bytes to grey or Hounsfield frames, in the decoder's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from client.data.dicom_file import open_dataset
from client.data.dicom_grey import GreyScale, luminance, weighted
from client.data.dicom_header import (
    PIXEL_KEYWORDS,
    DicomHeader,
    element_value,
    frame_holders,
    texts,
)
from client.data.dicom_pixels import stored_frames
from common.errors import DataError

AIR_HU = -1000.0
"""What padding outside a scanner's circle becomes."""

_MAX_TEXT = 1024  # characters of one value that are passed on
_MAX_VALUES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomRequest:
    """Which frames of a file to read, and as what.

    Attributes:
        path: The file.
        hounsfield: Rescaled values of a CT instead of grey.
        window: Name of a window or table; None for the first.
        frame: Counted from 1; None for the only one.
        volume: All frames.
        side: "L" or "R": images of the other side are mirrored. None leaves all as they are.
    """

    path: Path
    hounsfield: bool = False
    window: str | None = None
    frame: int | None = None
    volume: bool = False
    side: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomReader:
    """An open file whose header has passed its checks; no pixel has been decoded yet."""

    dataset: Dataset
    header: DicomHeader
    request: DicomRequest
    frames: tuple[int, ...]

    @classmethod
    def open(cls, request: DicomRequest) -> DicomReader:
        """Reads the file and checks its header against the request.

        Raises:
            DataError: The file or its header is unsound, or the request does not fit it.
        """
        dataset = open_dataset(request.path)
        if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
            raise DataError("has no pixel data")
        header = DicomHeader.of(dataset)
        if request.hounsfield:
            _check_is_ct(dataset, header)
        return cls(
            dataset=dataset,
            header=header,
            request=request,
            frames=_chosen_frames(request, header.num_frames),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of all frames that will come."""
        return len(self.frames), self.header.rows, self.header.columns

    def read(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yields each frame as (H, W), grey in [0, 1] or HU.

        Raises:
            DataError: The pixels are not what the header says.
        """
        color = self._palette() if self.header.is_palette else None
        decoded = stored_frames(self.dataset, self.header, self.frames)
        for frame, (stored, photometric) in zip(self.frames, decoded, strict=True):
            values = self._values(frame, stored, photometric, color)
            if self._is_mirrored(frame):
                values = values[:, ::-1]
            yield np.ascontiguousarray(values, dtype=np.float32)

    def _values(
        self,
        frame: int,
        stored: npt.NDArray[Any],
        photometric: str,
        color: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]] | None,
    ) -> npt.NDArray[Any]:
        if color is not None:
            return color(stored)
        if not self.header.is_grey:
            return luminance(stored, self.header, photometric)
        scale = GreyScale.of(self.dataset, self.header, frame)
        if not self.request.hounsfield:
            return scale.displayed(stored, self.request.window)
        if not scale.is_rescaled or scale.unit not in {"", "HU"}:
            raise DataError("is a CT without a slope and an intercept to Hounsfield units")
        values = scale.rescaled(stored)
        padded = scale.padded(stored)
        if padded is not None:
            values[padded] = AIR_HU
        return values

    def _palette(self) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
        """Grey of each number of a colour, worked out once for all numbers."""
        if self.header.bits_stored > 16 or self.header.signed:
            raise DataError("numbers its colours in another way than 1 to 16 unsigned bits")
        stored = np.arange(1 << self.header.bits_stored, dtype=np.uint16)
        colors = apply_color_lut(stored, self.dataset).astype(np.float32)
        bits = int(self.dataset.RedPaletteColorLookupTableDescriptor[2])
        grey = np.clip(weighted(colors) / np.float32((1 << bits) - 1), 0, 1)
        return lambda numbers: grey[numbers]

    def _is_mirrored(self, frame: int) -> bool:
        if self.request.side is None:
            return False
        for holder in frame_holders(self.dataset, frame, "FrameAnatomySequence"):
            for keyword in ("FrameLaterality", "ImageLaterality", "Laterality"):
                side = "".join(texts(holder, keyword))
                if side in {"L", "R"}:
                    return side != self.request.side
        raise DataError("does not say whether it shows the left or the right side")


def read_tags(path: Path, tags: tuple[int, ...]) -> dict[str, list[str]]:
    """Reads elements at the top of a header as texts, without the pixels.

    Args:
        path: The file.
        tags: Group and element as one number; those that are missing, unusable, binary or
            sequences are left out of the answer.

    Returns:
        From eight hexadecimal digits to the values.
    """
    dataset = open_dataset(path, tags)
    found: dict[str, list[str]] = {}
    for tag in tags:
        if tag not in dataset:
            continue
        try:
            value = element_value(dataset, Tag(tag))
        except DataError:  # against its own type: as good as missing
            continue
        if value is None or isinstance(value, bytes | Sequence):
            continue
        values = list(value) if isinstance(value, MultiValue) else [value]
        found[f"{tag:08x}"] = [str(text)[:_MAX_TEXT] for text in values[:_MAX_VALUES]]
    return found


def _chosen_frames(request: DicomRequest, num_frames: int) -> tuple[int, ...]:
    if request.volume:
        return tuple(range(num_frames))
    if request.frame is None and num_frames > 1:
        raise DataError(f"has {num_frames} frames: choose one (frame) or read them as a volume")
    frame = 1 if request.frame is None else request.frame
    if not 1 <= frame <= num_frames:
        raise DataError(f"has no frame {frame}: its frames are 1 to {num_frames}")
    return (frame - 1,)


def _check_is_ct(dataset: Dataset, header: DicomHeader) -> None:
    if not header.is_grey or "".join(texts(dataset, "Modality")) != "CT":
        raise DataError("is not a grey CT image, so it has no Hounsfield units")
    if element_value(dataset, "ModalityLUTSequence") is not None:
        raise DataError("is a CT without a slope and an intercept to Hounsfield units")
