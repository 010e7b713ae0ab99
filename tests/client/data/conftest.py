"""DICOM files to read, and what reading them takes."""

from __future__ import annotations

import contextlib
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.data.dicom import read_tags
from client.data.dicom_decoder import shared_decoder
from client.data.dicom_file import open_dataset
from client.data.dicom_header import DicomHeader
from client.data.dicom_worker import MEMORY_FACTOR, MEMORY_FLOOR_BYTES, honest_bytes
from common.errors import DataError

STORED = (np.arange(48).reshape(6, 8) * 80).astype(np.uint16)  # 0 to 3,760 of 12 bits

WriteDicom = Callable[..., Path]


@pytest.fixture
def write_dicom(tmp_path: Path) -> WriteDicom:
    """Writes ``STORED`` with changed attributes (``None`` removes one, an element is kept)."""

    def write(syntax: UID = ExplicitVRLittleEndian, **attributes: object) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.PatientID = "secret"
        dataset.Rows, dataset.Columns = 6, 8
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation = 0
        dataset.PixelData = STORED.tobytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of the values these tests are about
            for keyword, value in attributes.items():
                if value is None:
                    delattr(dataset, keyword)
                elif isinstance(value, DataElement):
                    dataset.add(value)
                else:
                    setattr(dataset, keyword, value)
            if syntax in {RLELossless, JPEGLSLossless, JPEG2000Lossless}:
                dataset.compress(syntax)
            else:
                dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(tmp_path / "secret.dcm", enforce_file_format=True)
        return tmp_path / "secret.dcm"

    return write


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What came of reading a file, and what it took."""

    result: Any
    refusal: str | None
    decoder_bytes: int
    caller_bytes: int
    honest_bytes: int

    def times(self, *, floor: int) -> float:
        """Memory beyond ``floor`` bytes, as a multiple of the honest size; allowed is 10.

        The decoder holds one frame at a time, the caller all of them.
        """
        frames = 1 if self.result is None else max(1, getattr(self.result, "nbytes", 0))
        decoder = (self.decoder_bytes - floor) / self.honest_bytes
        caller = (self.caller_bytes - floor) / max(self.honest_bytes, frames)
        return max(0.0, decoder, caller)


@pytest.fixture
def take_in() -> Callable[[Callable[[Path], Any], Path], Reading]:
    """Reads a file and measures; a decoder that ended counts its whole limit.

    The lesser of two readings counts: the system puts pages of a decoder that waits aside, and
    those come back in the first one.
    """

    def take(read: Callable[[Path], Any], path: Path) -> Reading:
        return min(once(read, path), once(read, path), key=lambda one: one.decoder_bytes)

    def once(read: Callable[[Path], Any], path: Path) -> Reading:
        honest = _honest_bytes(path)
        with contextlib.suppress(DataError):  # answered when the file before is tidied away
            read_tags(path / "missing", [])
        pid = shared_decoder().pid
        assert pid is not None
        before = _reset_peak(pid)
        result, refusal = None, None
        tracemalloc.start()
        try:
            result = read(path)
        except DataError as error:
            refusal = str(error)
        caller = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        is_same = shared_decoder().pid == pid
        limit = MEMORY_FACTOR * honest + MEMORY_FLOOR_BYTES
        return Reading(
            result=result,
            refusal=refusal,
            decoder_bytes=_status(pid, "VmHWM") - before if is_same else limit,
            caller_bytes=caller,
            honest_bytes=honest,
        )

    return take


def _honest_bytes(path: Path) -> int:
    """The file, and each sample of the frames it is right to take memory for, as float32."""
    size = path.stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = DicomHeader.of(open_dataset(path))
    except Exception:
        return size
    return honest_bytes(header, size)


def _reset_peak(pid: int) -> int:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    return _status(pid, "VmRSS")


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
