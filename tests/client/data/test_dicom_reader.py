"""Every file that pydicom brings along: read, or refused with one clear reason."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from client.data.dicom import read_dicom, read_dicom_volume, read_hounsfield, read_tags
from common.errors import DataError

_FOLDER = Path(pydicom.__file__).parent / "data"
_FILES = sorted(
    path for path in _FOLDER.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}
)
_REASONS = {
    "has no pixel data": 81,
    "is not a DICOM file (it has no DICM prefix)": 17,
    "stores more than 16 bits and has no window to show them with": 6,
    "has 8320 bytes of pixels where its header says 8192": 1,
    "has 8130 bytes of pixels where its header says 8192": 1,
    "has a compressed frame of another size than its header says": 1,
    "has no usable NumberOfFrames": 1,
    "has no usable Rows": 1,
    "names no transfer syntax": 1,
}


@pytest.fixture(autouse=True)
def _running() -> None:
    """The decoder is up before it is measured."""
    read_dicom(_FOLDER / "test_files" / "CT_small.dcm")


def test_every_file_is_read_or_refused_for_one_reason(take_in: Callable[..., object]) -> None:
    reasons: Counter[str] = Counter()
    for path in _FILES:
        reading = take_in(read_dicom_volume, path)
        assert reading.times(floor=1 << 20) <= 10, path.name
        if reading.refusal is None:
            assert np.isfinite(reading.result).all()
            assert reading.result.min() >= 0
            assert reading.result.max() <= 1
            continue
        reasons[reading.refusal] += 1
    assert len(_FILES) == 205
    assert dict(reasons) == _REASONS
    assert sum(reasons.values()) == 205 - 95


def test_single_images_hounsfield_units_and_tags_of_every_file() -> None:
    counts: Counter[str] = Counter()
    for path in _FILES:
        for name, read in (
            ("image", read_dicom),
            ("hounsfield", read_hounsfield),
            ("tags", lambda file: read_tags(file, ["SOPClassUID", "PatientID", "Rows"])),
        ):
            with contextlib.suppress(DataError):
                read(path)
                counts[name] += 1
    assert counts["image"] == 91
    assert counts["hounsfield"] == 14
    assert counts["tags"] == 187
