"""CBIS-DDSM folders written by these tests, from published crops where they are there.

No mammogram of a patient is in them: a crop (or a phantom mass) is set into an even background and
stored as DICOM with a mask, under the names and in the folders of the collection.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

import configs
from client.data.cohort import load_cohort
from client.data.image import resize
from client.data.mass import draw_mass, draw_view
from client.data.mass_crop import Box, paper_square
from client.data.study import Study, build
from common.errors import DataError

_CROPS = Path(__file__).parents[4] / "shared" / "data" / "cbis_ddsm_masses"
_HEADER = [
    *("patient_id", "breast_density", "left or right breast", "image view", "abnormality id"),
    *("abnormality type", "mass shape", "mass margins", "assessment", "pathology", "subtlety"),
    *("image file path", "cropped image file path", "ROI mask file path"),
]
_SHAPE = (700, 620)  # of a mammogram, rows and columns
_MASS = 136  # width of the mask, so that crops are 256 pixels wide


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a table: a crop of 128 x 128 set at twice its size at a corner."""

    patient: str
    pathology: str
    split: str
    crop: np.ndarray
    corner: tuple[int, int]
    uid_folders: bool = True
    mask_first: bool = False
    mask_scale: int = 1

    @property
    def box(self) -> Box:
        top, left = (side + (256 - _MASS) // 2 for side in self.corner)
        return Box(x=left, y=top, width=_MASS, height=_MASS)

    @property
    def mammogram(self) -> np.ndarray:
        """16-bit pixels; 0 and 65535 are among them."""
        pixels = np.full(_SHAPE, 9000, dtype=np.uint16)
        top, left = self.corner
        pixels[top : top + 256, left : left + 256] = np.kron(
            self.crop.astype(np.uint16) * 257, np.ones((2, 2), dtype=np.uint16)
        )
        pixels[0, 0], pixels[0, 1] = 0, 65535
        return pixels

    @property
    def mask(self) -> np.ndarray:
        mask = np.zeros(_SHAPE, dtype=np.uint8)
        self.box.cut(mask)[:] = 255
        return np.kron(mask, np.ones((self.mask_scale,) * 2, dtype=np.uint8))


def _crops() -> list[np.ndarray]:
    """Published crops of four patients, or phantoms."""
    if _CROPS.is_dir():
        with (_CROPS / "metadata.csv").open() as file:
            names = [row["file"] for row in csv.DictReader(file)][:40:10]
        return [np.asarray(Image.open(_CROPS / name).convert("L")) for name in names]
    generator = np.random.default_rng(5)
    views = [
        draw_view(
            generator,
            draw_mass(generator, malignant=bool(number % 2)),
            density=2,
            size=128,
            field_mm=40.0,
        )
        for number in range(4)
    ]
    return [np.rint(np.clip(view, 0, 1) * 255).astype(np.uint8) for view in views]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    first, second, third, fourth = _crops()
    return [
        Case(
            patient="P_00001",
            pathology="MALIGNANT",
            split="train",
            crop=first,
            corner=(100, 200),
        ),
        Case(
            patient="P_00001",
            pathology="BENIGN_WITHOUT_CALLBACK",
            split="train",
            crop=second,
            corner=(0, 0),
            mask_first=True,
        ),
        Case(
            patient="P_00002",
            pathology="BENIGN",
            split="train",
            crop=third,
            corner=(444, 364),
            mask_scale=2,
        ),
        Case(
            patient="P_00016",
            pathology="MALIGNANT",
            split="test",
            crop=fourth,
            corner=(300, 100),
            uid_folders=False,
        ),
    ]


def _save(pixels: np.ndarray, path: Path) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientID = "secret"
    dataset.Modality = "MG"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    bits = 8 * pixels.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    content = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def _write_case(root: Path, case: Case, number: int) -> list[str]:
    """Writes the files of a case; returns its row, whose paths end in a line break as published."""
    part = "Training" if case.split == "train" else "Test"
    name = f"Mass-{part}_{case.patient}_LEFT_CC{number}"
    image = f"{name}/1.3.6.1.{number}.1/1.3.6.1.{number}.2"
    mask = f"{name}_1/1.3.6.1.{number}.3/1.3.6.1.{number}.4"
    folders = (image, mask)
    if not case.uid_folders:  # as a download tool names what lies below the first folder
        folders = (f"{name}/10-04-2016-DDSM-NA/1.0-images", f"{name}_1/10-04-2016-DDSM/1.0-ROI")
    _save(case.mammogram, root / folders[0] / "1-1.dcm")
    top, left = case.corner
    crop = case.mammogram[top : top + 256, left : left + 256]
    order = (case.mask, crop) if case.mask_first else (crop, case.mask)
    for place, pixels in enumerate(order, start=1):
        _save(pixels, root / folders[1] / f"1-{place}.dcm")
    facts = [case.patient, "3", "LEFT", "CC", "1", "mass", "OVAL", "SPICULATED", "4"]
    paths = [f"{image}/000000.dcm", f"{mask}/000000.dcm\n", f"{mask}/000001.dcm\n"]
    return [*facts, case.pathology, "4", *paths]


@pytest.fixture
def root(tmp_path: Path, cases: list[Case]) -> Path:
    """The folder of a study with the tables and files of ``cases``."""
    for split in ("train", "test"):
        with (tmp_path / f"mass_case_description_{split}_set.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(_HEADER)
            for number, case in enumerate(cases):
                if case.split == split:
                    table.writerow(_write_case(tmp_path, case, number))
    return tmp_path


def _open(root: Path, *overrides: str) -> Study:
    config = configs.load(["data=cbis_ddsm", f"data.root={root}", *overrides])
    return build(config.data, num_sites=1, phantom_dir=root, secret=bytes(16))


def test_the_crops_come_back(root: Path, cases: list[Case]) -> None:
    study = _open(root)
    for record, case in zip(study.records, cases, strict=True):
        crop = study.read(record)
        assert crop.shape == (256, 256)
        difference = np.abs(resize(crop, 128) * 255 - case.crop)
        assert difference[1 if case.corner == (0, 0) else 0 :].max() < 0.01
    cohort = load_cohort(study, study.records, image_size=64)
    expected = [resize(case.crop / np.float32(255), 64) for case in cases[:1]]
    assert np.abs(cohort.images[:1, 0] - expected).max() < 1e-3


def test_labels_patients_and_splits(root: Path) -> None:
    study = _open(root)
    assert study.task.names == ("malignant",)
    assert [record.labels for record in study.records] == [(1,), (0,), (0,), (1,)]
    assert [record.split for record in study.records] == ["train"] * 3 + ["test"]
    assert [record.row for record in study.records] == [1, 2, 3, 4]
    patients = [record.patient for record in study.records]
    assert patients[0] == patients[1]
    assert len(set(patients)) == 3
    assert study.records[0].groups == {"density": "3", "view": "CC"}


def test_the_crops_of_the_paper_come_back(root: Path, cases: list[Case]) -> None:
    """The paper's square, out of the 8-bit mammogram, by area to 128 x 128."""
    study = _open(root, "data.paper_crops=true")
    assert [record.row for record in study.records] == [1, 2, 3, 4]
    for record, case in zip(study.records, cases, strict=True):
        square = paper_square(case.box, _SHAPE, np.random.default_rng([2024, record.row]))
        eight_bits = np.rint(case.mammogram / 65535 * 255).astype(np.uint8)
        expected = Image.fromarray(square.cut(eight_bits)).resize((128, 128), Image.Resampling.BOX)
        crop = study.read(record)
        assert crop.shape == (128, 128)
        assert np.abs(crop * 255 - np.asarray(expected)).max() < 1.01


def test_each_contour_is_a_mass_of_the_paper_only(root: Path, cases: list[Case]) -> None:
    mask = cases[0].mask
    mask[500:540, 20:60] = 255
    folder = next(root.glob("Mass-Training_P_00001_LEFT_CC0_1/*/*"))
    _save(mask, folder / "1-2.dcm")
    assert len(_open(root).records) == 4
    assert np.allclose(resize(_open(root).read(_open(root).records[0]), 128) * 255, cases[0].crop)
    assert [record.labels for record in _open(root, "data.paper_crops=true").records] == [
        (1,),
        (1,),
        (0,),
        (0,),
        (1,),
    ]


def _read_all(root: Path, *overrides: str) -> None:
    study = _open(root, *overrides)
    for record in study.records:
        study.read(record)


def _refusal(root: Path, *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        _read_all(root, *overrides)
    text = str(caught.value)
    assert "P_0" not in text
    assert "\n" not in text
    return text


def test_a_missing_folder_or_file_is_named_by_its_row(root: Path) -> None:
    mammogram = next(root.glob("Mass-Training_P_00002_LEFT_CC2/*/*/1-1.dcm"))
    mammogram.unlink()
    assert "row 3 names a mammogram whose folder has no DICOM file" in _refusal(root)
    mammogram.parent.rmdir()
    mammogram.parent.parent.rmdir()
    mammogram.parent.parent.parent.rmdir()
    assert "row 3 names a folder that is not there in column image file path" in _refusal(root)


def test_a_missing_or_empty_mask(root: Path, cases: list[Case]) -> None:
    path = next(root.glob("Mass-Training_P_00001_LEFT_CC0_1/*/*/1-2.dcm"))
    _save(np.zeros(_SHAPE, dtype=np.uint8), path)
    assert "the image of row 1 has an empty mask" in _refusal(root)
    path.unlink()
    assert "the image of row 1 has no mask" in _refusal(root)
    assert "row 1 names a mask or mammogram that has no mask" in _refusal(
        root, "data.paper_crops=true"
    )


def test_a_path_out_of_the_folder_is_refused(root: Path) -> None:
    table = root / "mass_case_description_test_set.csv"
    table.write_text(table.read_text().replace("Mass-Test_P_00016_LEFT_CC3/", "../../P_00016/"))
    assert "row 1 names a folder outside data.root" in _refusal(root)
