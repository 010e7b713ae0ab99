"""DICOM files as images, volumes, Hounsfield units or tags.

Every byte of a DICOM file is read in a child process with limits (`client.data.dicom_decoder`); the
texts of errors are predicates that a study completes with the row. `docs/dicom.md` says what is
read, what is refused and what it costs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.datadict import tag_for_keyword

from client.data.dicom_decoder import shared_decoder

_HEXADECIMAL = re.compile(r"\(?([0-9a-fA-F]{4}),? ?([0-9a-fA-F]{4})\)?")


def read_dicom(
    path: Path, *, window: str | None = None, frame: int | None = None, side: str | None = None
) -> npt.NDArray[np.float32]:
    """Reads one frame as its display shows it.

    Modality table or slope and intercept, then a window or VOI table, or without one the full range
    of the stored bits; MONOCHROME1 is inverted, so that bright always means dense; padding is
    black; colours become luma.

    Args:
        path: A DICOM file with its 128-byte preamble.
        window: ``WindowCenterWidthExplanation`` or ``LUTExplanation`` of the window, in any case;
            None for the file's first.
        frame: Counted from 1; None for the only one.
        side: "L" or "R": an image of the other side is mirrored; None leaves it as it is.

    Returns:
        (H, W) in [0, 1].

    Raises:
        DataError: The file is unsound, has several frames and none is named, or asks for something
            that is not supported.
    """
    return _frames(path, window=window, frame=frame, side=side)[0]


def read_dicom_volume(
    path: Path, *, window: str | None = None, side: str | None = None
) -> npt.NDArray[np.float32]:
    """Reads all frames of one file, in the file's order, as `read_dicom` reads one.

    Returns:
        (D, H, W) in [0, 1].
    """
    return _frames(path, window=window, side=side, volume=True)


def read_hounsfield(path: Path, *, frame: int | None = None) -> npt.NDArray[np.float32]:
    """Reads one frame of a CT in Hounsfield units: rescaled, no window, padding as air (-1,000).

    Returns:
        (H, W) in HU.

    Raises:
        DataError: As `read_dicom`, or the image is no CT or gives no slope and intercept.
    """
    return _frames(path, frame=frame, hounsfield=True)[0]


def read_hounsfield_volume(path: Path) -> npt.NDArray[np.float32]:
    """Reads all frames of one CT file, in the file's order, in Hounsfield units.

    Returns:
        (D, H, W) in HU.
    """
    return _frames(path, hounsfield=True, volume=True)


def read_tags(path: Path, tags: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Reads elements at the top of a header, without the pixels.

    The values may identify a patient: they stay with the caller.

    Args:
        path: A DICOM file with its 128-byte preamble.
        tags: Keywords ("SeriesInstanceUID") or numbers ("0020,000e").

    Returns:
        The values of those that are there, as texts, under the names asked for. Sequences,
        binary elements and values against their own type are left out.

    Raises:
        ValueError: A name is neither a keyword of the standard nor a number.
        DataError: The file is not sound.
    """
    wanted = {name: _tag(name) for name in tags}
    request = {"path": os.fspath(path), "tags": list(wanted.values())}
    found = shared_decoder().tags(request)
    keys = {name: f"{tag:08x}" for name, tag in wanted.items()}
    return {name: tuple(found[key]) for name, key in keys.items() if key in found}


def _frames(path: Path, **request: Any) -> npt.NDArray[np.float32]:
    side = request.get("side")
    if side not in {None, "L", "R"}:
        raise ValueError(f'side={side}: must be "L", "R" or None')
    return shared_decoder().frames({"path": os.fspath(path), **request})


def _tag(name: str) -> int:
    tag = tag_for_keyword(name)
    if tag is None:
        match = _HEXADECIMAL.fullmatch(name.strip())
        if match is None:
            raise ValueError(f"tags={name}: is neither a DICOM keyword nor a number as 0020,000e")
        tag = int(match[1] + match[2], 16)
    return tag
