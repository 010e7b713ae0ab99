"""CT series written with pydicom; nobody was scanned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.data.series import read_series
from common.errors import DataError

VALUES = np.random.default_rng(0).integers(-1024, 2000, (6, 5, 4)).astype(np.int16)
SERIES = "1.2.3"
AXIAL = (1, 0, 0, 0, 1, 0)

WriteSeries = Callable[..., Path]


def _slice(pixels: np.ndarray, position: tuple[float, ...]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = SERIES
    dataset.PatientID = "secret"
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    dataset.PixelSpacing = [0.7, 0.6]
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.ImagePositionPatient = list(position)
    dataset.PixelData = (pixels.astype(np.int32) + 1024).astype("<u2").tobytes()
    return dataset


@pytest.fixture
def write_series(tmp_path: Path) -> WriteSeries:
    """Writes ``VALUES`` from the head down under names that say nothing."""

    def write(change: Callable[[int, Dataset], None] = lambda *_: None) -> Path:
        folder = tmp_path / "secret-series"
        folder.mkdir()
        names = Random(3).sample(range(100), len(VALUES))
        for number, pixels in enumerate(VALUES):
            dataset = _slice(pixels, (-10, -20, 100 + 2.5 * number))
            dataset.InstanceNumber = len(VALUES) - number
            change(number, dataset)
            dataset.save_as(folder / f"{names[number]:03d}", enforce_file_format=True)
        return folder

    return write


def _refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_series(folder)
    text = str(caught.value)
    assert "secret" not in text
    assert "\n" not in text
    return text


def test_slices_are_sorted_by_position(write_series: WriteSeries) -> None:
    volume = read_series(write_series())
    assert np.array_equal(volume.values, VALUES)
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.6))


def test_a_series_stored_feet_first_and_mirrored_is_the_same_body(
    write_series: WriteSeries,
) -> None:
    def mirror(number: int, dataset: Dataset) -> None:
        pixels = VALUES[number][::-1, ::-1]
        dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        dataset.PixelData = (pixels.astype(np.int32) + 1024).astype("<u2").tobytes()

    assert np.array_equal(read_series(write_series(mirror)).values, VALUES)


def test_a_sagittal_series_becomes_axial(write_series: WriteSeries) -> None:
    def sagittal(number: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # rows run down the body
        dataset.ImagePositionPatient = [-10 - 2.5 * number, -20, 100]

    volume = read_series(write_series(sagittal))
    assert np.array_equal(volume.values, VALUES[::-1, ::-1].transpose(1, 2, 0))
    assert volume.spacing_mm == pytest.approx((0.7, 0.6, 2.5))


def test_scouts_reports_and_other_files_are_left_out(write_series: WriteSeries) -> None:
    folder = write_series()
    scout = _slice(VALUES[0], (0, 0, 0))
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.save_as(folder / "scout", enforce_file_format=True)
    report = _slice(VALUES[0], (0, 0, 0))
    del report.Rows, report.PixelData
    report.save_as(folder / "report", enforce_file_format=True)
    (folder / "readme.txt").write_text("not an image")
    assert np.array_equal(read_series(folder).values, VALUES)


def _set(number: int, **values: object) -> Callable[[int, Dataset], None]:
    def change(position: int, dataset: Dataset) -> None:
        if position == number:
            for keyword, value in values.items():
                setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ImagePositionPatient": [-10, -20, 100]}, "two slices at the same place"),
        ({"ImagePositionPatient": [-10, -20, 106]}, "a gap"),
        ({"ImagePositionPatient": None}, "without a usable ImagePositionPatient"),
        ({"ImagePositionPatient": [-10, -20]}, "without a usable ImagePositionPatient"),
        ({"PixelSpacing": None}, "without a usable PixelSpacing"),
        ({"PixelSpacing": [0.7, 0.7]}, "different orientation or pixel spacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "different orientation"),
        ({"SeriesInstanceUID": "1.2.4"}, "more than one series"),
        ({"NumberOfFrames": 2}, "several frames"),
        (
            {"Rows": 4, "PixelData": VALUES[0, :4].astype("<u2").tobytes()},
            "slices of different sizes",
        ),
        ({"Modality": "MR"}, "CT"),
    ],
)
def test_what_makes_no_volume_is_refused(
    write_series: WriteSeries, values: dict[str, object], message: str
) -> None:
    assert message in _refusal(write_series(_set(1, **values)))


def test_a_missing_slice_is_a_gap(write_series: WriteSeries) -> None:
    folder = write_series()
    for path in sorted(folder.iterdir())[3:4]:
        path.unlink()
    left = read_positions(folder)
    if min(left) > 100 or max(left) < 112.5:
        pytest.fail("the test removed an outer slice")
    assert "a gap" in _refusal(folder)


def read_positions(folder: Path) -> list[float]:
    import pydicom

    return [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in folder.iterdir()]


def test_a_tilted_gantry_is_refused(write_series: WriteSeries) -> None:
    def tilt(number: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [-10, -20 + number, 100 + 2.5 * number]

    assert "tilted gantry" in _refusal(write_series(tilt))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_slices(write_series: WriteSeries, count: int) -> None:
    folder = write_series()
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()
    assert f"has {count} CT slices" in _refusal(folder)


def test_too_many_files(tmp_path: Path) -> None:
    for number in range(4097):
        (tmp_path / str(number)).touch()
    assert "has 4097 files; a series has at most 4096" in _refusal(tmp_path)
