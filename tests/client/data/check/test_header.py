from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.data.check.header import header_findings, read_headers
from client.data.study import Record


def _write(path: Path, **tags: Any) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.arange(16, dtype=np.uint8).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _findings(*paths: Path) -> dict[str, tuple[int, ...]]:
    records = [
        Record(row=row, path=path, patient=f"p{row}", labels=(0,))
        for row, path in enumerate(paths, start=1)
    ]
    return {finding.code: finding.rows for finding in header_findings(read_headers(records))}


def test_headers_that_name_a_person(tmp_path: Path) -> None:
    found = _findings(
        _write(tmp_path / "a", PatientName="Secret^Person", BurnedInAnnotation="NO"),
        _write(tmp_path / "b", PatientName="", PatientBirthDate="", BurnedInAnnotation="NO"),
        _write(tmp_path / "c", PatientBirthDate="19700101", BurnedInAnnotation="NO"),
        _write(
            tmp_path / "d",
            PatientName="Stand^In",
            PatientIdentityRemoved="YES",
            BurnedInAnnotation="NO",
        ),
    )
    assert found == {"identifying_tags": (1, 3)}


def test_the_text_says_which_elements_and_no_value(tmp_path: Path) -> None:
    path = _write(tmp_path / "a", PatientName="Secret^Person", AccessionNumber="4711")
    record = Record(row=1, path=path, patient="p", labels=(0,))
    (first, *_) = header_findings(read_headers([record]))
    assert "(PatientName, AccessionNumber)" in first.text
    assert "Secret" not in first.text
    assert "4711" not in first.text


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
        (
            {"BurnedInAnnotation": "NO", "RecognizableVisualFeatures": "YES"},
            "recognizable_features",
        ),
        ({}, "burned_in_unknown"),
    ],
)
def test_what_may_be_within_the_pixels(tags: dict[str, str], code: str, tmp_path: Path) -> None:
    assert _findings(_write(tmp_path / "a", **tags)) == {code: (1,)}


def test_a_series_is_told_by_its_first_file(tmp_path: Path) -> None:
    _write(tmp_path / "2", BurnedInAnnotation="YES")
    _write(tmp_path / "1", BurnedInAnnotation="NO")
    assert _findings(tmp_path) == {}


def test_other_kinds_and_broken_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    (tmp_path / "broken").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    (tmp_path / "empty").mkdir()
    assert _findings(tmp_path / "text", tmp_path / "absent", tmp_path / "empty") == {}
    assert _findings(tmp_path / "broken") == {}
