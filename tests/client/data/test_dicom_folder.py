"""DICOM folders written with pydicom; nobody was imaged."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

import configs
from client.data.cohort import load_cohort
from client.data.patient import PatientHash
from client.data.study import Study, build
from common.errors import DataError

# Two images of a's first study, one of the second, one of b; told apart by their brightness.
_IMAGES = [
    {"sop": "1.1.1", "series": "1.1.10", "study": "1.1", "accession": "A1", "patient": "secret-a"},
    {"sop": "1.1.2", "series": "1.1.11", "study": "1.1", "accession": "A1", "patient": "secret-a"},
    {"sop": "1.2.1", "series": "1.2.10", "study": "1.2", "accession": "A2", "patient": "secret-a"},
    {"sop": "2.1.1", "series": "2.1.10", "study": "2.1", "accession": "B1", "patient": "secret-b"},
]
_KEYS = {
    "SOPInstanceUID": "sop",
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
    "AccessionNumber": "accession",
    "PatientID": "patient",
}


def _dataset(number: int, image: dict[str, str]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    for keyword, key in _KEYS.items():
        setattr(dataset, keyword, image[key])
    dataset.Manufacturer = "north" if image["patient"] == "secret-a" else "south"
    dataset.PatientSex, dataset.PatientAge = "F", "061Y"
    dataset.Rows, dataset.Columns = 6, 8
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes([50 * (number + 1)]) * 48
    return dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The images above in nested folders, a report without pixels and a text file."""
    for number, image in enumerate(_IMAGES):
        folder = tmp_path / "images" / f"secret-{image['patient']}" / str(number)
        folder.mkdir(parents=True)
        _dataset(number, image).save_as(folder / f"IM{number}", enforce_file_format=True)
    report = _dataset(0, _IMAGES[0])
    report.SOPInstanceUID = "1.1.3"
    del report.PixelData, report.Rows
    report.save_as(tmp_path / "images" / "report.dcm", enforce_file_format=True)
    (tmp_path / "images" / "readme.txt").write_text("no image")
    return tmp_path


def _open(root: Path, table: list[list[str]], *overrides: str) -> Study:
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    config = configs.load(
        [
            *("data=dicom_folder", f"data.root={root}", "data.image_folder=images"),
            *(f"data.columns.image={table[0][0]}", "data.columns.label=label", *overrides),
        ]
    )
    return build(config.data, num_sites=1, phantom_dir=root, secret=bytes(16))


@pytest.mark.parametrize("keyword", list(_KEYS))
def test_labels_are_joined_on_any_tag(root: Path, keyword: str) -> None:
    key = _KEYS[keyword]
    values = list(dict.fromkeys(image[key] for image in _IMAGES))
    label = {value: str(number % 2) for number, value in enumerate(values)}
    table = [["name", "label"], *([value, label[value]] for value in reversed(values))]
    study = _open(root, table, f"data.join={keyword}")
    assert [record.labels for record in study.records] == [
        (int(label[image[key]]),) for image in _IMAGES
    ]
    assert [record.row for record in study.records] == [1, 2, 3, 4]
    hashed = PatientHash(secret=bytes(16))
    assert [record.patient for record in study.records] == [
        hashed(image["patient"]) for image in _IMAGES
    ]
    cohort = load_cohort(study, study.records, image_size=8)
    assert np.allclose(cohort.images[:, 0, 0, 0] * 255, [50, 100, 150, 200], atol=0.01)


def test_labels_are_joined_on_the_path(root: Path) -> None:
    table = [["file", "label"], ["secret-secret-a/1/IM1", "1"], ["secret-secret-b/3/IM3", "0"]]
    study = _open(root, table, "data.join=path")
    assert [record.labels for record in study.records] == [(1,), (0,)]
    assert np.allclose(study.read(study.records[0]) * 255, 100, atol=0.01)


def test_sites_and_groups_may_be_tags(root: Path) -> None:
    study = _open(
        root,
        [["name", "label", "Density"], ["secret-a", "1", "dense"], ["secret-b", "0", "fatty"]],
        "data.join=PatientID",
        "data.columns.site=Manufacturer",
        "data.columns.groups={sex: PatientSex, age: PatientAge, density: Density}",
        "data.columns.bins={age: [0, 60]}",
    )
    assert [record.site for record in study.records] == ["north"] * 3 + ["south"]
    groups = [dict(record.groups) for record in study.records]
    assert groups[0] == {"sex": "F", "age": ">=60", "density": "dense"}
    assert groups[3] == {"sex": "F", "age": ">=60", "density": "fatty"}


def test_images_without_a_label_are_left_out(root: Path) -> None:
    study = _open(root, [["name", "label"], ["1.1", "1"]], "data.join=StudyInstanceUID")
    assert len(study.records) == 2


@pytest.mark.parametrize(
    ("table", "overrides", "message"),
    [
        (
            [["name", "label"], ["1.1.1", "1"], ["9.9", "0"]],
            (),
            "1 of 2 rows match no DICOM file by data.join=SOPInstanceUID (row 2 is the first)",
        ),
        (
            [["name", "label"], ["1.1.3", "1"]],
            (),
            "1 of 1 rows match no DICOM file",
        ),
        (
            [["name", "label"], ["1.1.1", "1"], ["1.1.1", "0"]],
            (),
            "row 2 holds the same value in column name as row 1",
        ),
        (
            [["name", "label"], ["1.1.1", "1"]],
            ("data.join=Nonsense",),
            "data.join=Nonsense: is neither a column of labels.csv nor a DICOM keyword",
        ),
        (
            [["name", "label"], ["1.1.1", "1"]],
            ("data.columns.site=hospital",),
            "data.columns.site=hospital: is neither a column of labels.csv nor a DICOM keyword",
        ),
        (
            [["name", "label"], ["1.1.1", "1"]],
            ("data.columns.patient=OtherPatientIDs",),
            "row 1 has no value in column OtherPatientIDs",
        ),
        (
            [["name", "label"], ["1.1.1", "secret"]],
            (),
            "row 1 must hold 0 or 1 in column label",
        ),
        (
            [["name", "label"], ["1.1.1", "1"]],
            ("data.image_folder=nowhere",),
            "data.image_folder=nowhere: is no folder in data.root",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    root: Path, table: list[list[str]], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        _open(root, table, *overrides)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_damaged_file_is_named_by_its_place(root: Path) -> None:
    path = root / "images" / "secret-secret-a" / "1" / "IM1"
    path.write_bytes(path.read_bytes()[:140])
    with pytest.raises(DataError, match="DICOM file 3 in the order of paths") as caught:
        _open(root, [["name", "label"], ["1.1.1", "1"]])
    assert "secret" not in str(caught.value)


def test_links_are_not_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "IM9"
    _dataset(0, {**_IMAGES[0], "sop": "7.7"}).save_as(other, enforce_file_format=True)
    (root / "images" / "link").symlink_to(other)
    with pytest.raises(DataError, match="rows match no DICOM file"):
        _open(root, [["name", "label"], ["7.7", "1"]])


def test_folders_of_slices_are_joined_as_volumes(root: Path) -> None:
    for number, series in enumerate(("1.1.10", "2.1.10")):
        folder = root / "images" / f"secret-series-{number}"
        folder.mkdir()
        for place in range(4):
            dataset = _dataset(0, {**_IMAGES[3 * number], "sop": f"5.{number}.{place}"})
            dataset.SeriesInstanceUID = series
            dataset.Modality, dataset.RescaleType = "CT", "HU"
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
            dataset.PixelSpacing = [1, 1]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.ImagePositionPatient = [0, 0, place]
            dataset.PixelData = bytes([100 * number]) * 48
            dataset.save_as(folder / f"{place}.dcm", enforce_file_format=True)
    study = _open(
        root,
        [["series", "label"], ["1.1.10", "1"], ["2.1.10", "0"]],
        *("data.kind=ct_volumes", "data.join=SeriesInstanceUID", "data.image_size=8"),
    )
    # The single images of both series lie in folders of their own.
    volumes = [record for record in study.records if record.path.name.startswith("secret-series")]
    assert [record.labels for record in volumes] == [(1,), (0,)]
    assert volumes[0].patient == PatientHash(secret=bytes(16))("secret-a")
    assert study.read(volumes[0]).mean() == pytest.approx(0.4)  # 0 HU from -160 to 240
    assert study.read(volumes[1]).mean() == pytest.approx(0.65)  # 100 HU
    assert study.read(volumes[1]).shape == (16, 8, 8)
