"""DICOM files are written here with pydicom, from a ramp of stored numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.data.image import read_image
from common.errors import DataError

_STORED = (np.arange(48).reshape(6, 8) * 80).astype(np.uint16)  # 0 to 3,760 of 12 bits

WriteDicom = Callable[..., Path]


@pytest.fixture
def write_dicom(tmp_path: Path) -> WriteDicom:
    """Writes ``_STORED`` with changed attributes (``None`` removes one)."""

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
        dataset.PixelData = _STORED.tobytes()
        for keyword, value in attributes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of the values these tests are about
            if syntax == RLELossless:
                dataset.compress(RLELossless)
            else:
                dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(tmp_path / "secret.dcm", enforce_file_format=True)
        return tmp_path / "secret.dcm"

    return write


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_image(path)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_window_the_stored_bits_are_the_range(write_dicom: WriteDicom) -> None:
    read = read_image(write_dicom())
    assert read.dtype == np.float32
    assert np.allclose(read, _STORED / 4095, atol=1e-6)


def test_monochrome1_is_inverted(write_dicom: WriteDicom) -> None:
    read = read_image(write_dicom(PhotometricInterpretation="MONOCHROME1"))
    assert np.allclose(read, 1 - _STORED / 4095, atol=1e-6)


def test_signed_pixels(write_dicom: WriteDicom) -> None:
    signed = _STORED.astype(np.int16) - 2048
    read = read_image(write_dicom(PixelRepresentation=1, PixelData=signed.tobytes()))
    assert np.allclose(read, (signed + 2048) / 4095, atol=1e-6)


def test_a_negative_slope_without_a_window_turns_the_scale(write_dicom: WriteDicom) -> None:
    read = read_image(write_dicom(RescaleSlope=-2, RescaleIntercept=9))
    assert np.allclose(read, 1 - _STORED / 4095, atol=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
def test_linear_window_after_rescale(write_dicom: WriteDicom, inverted: bool) -> None:
    read = read_image(
        write_dicom(
            RescaleSlope=0.5,
            RescaleIntercept=-100,
            WindowCenter=[700, 5],
            WindowWidth=[1001, 10],
            PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
        )
    )
    # DICOM PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5), cut at 0 and 1.
    expected = np.clip((_STORED * 0.5 - 100 - 699.5) / 1000 + 0.5, 0, 1)
    assert np.allclose(read, 1 - expected if inverted else expected, atol=1e-5)


def test_exact_and_sigmoid_windows(write_dicom: WriteDicom) -> None:
    window = {"WindowCenter": 1900, "WindowWidth": 1000}
    exact = read_image(write_dicom(VOILUTFunction="LINEAR_EXACT", **window))
    assert np.allclose(exact, np.clip((_STORED - 1900.0) / 1000 + 0.5, 0, 1), atol=1e-5)
    sigmoid = read_image(write_dicom(VOILUTFunction="SIGMOID", **window))
    assert np.allclose(sigmoid, 1 / (1 + np.exp(-4 * (_STORED - 1900.0) / 1000)), atol=1e-5)


def test_a_window_of_one_is_a_step(write_dicom: WriteDicom) -> None:
    read = read_image(write_dicom(WindowCenter=2000, WindowWidth=1))
    assert np.array_equal(read, _STORED > 1999.5)


def test_run_length_encoding(write_dicom: WriteDicom) -> None:
    assert np.allclose(read_image(write_dicom(syntax=RLELossless)), _STORED / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Rows": 60000, "Columns": 60000}, "says it has 60000 x 60000 pixels"),
        ({"Rows": 0}, "says it has 0 x 8 pixels"),
        ({"Rows": None}, "no usable Rows"),
        ({"Rows": 6000, "Columns": 8000}, "cannot be decoded"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"SamplesPerPixel": 3}, "colour is not supported"),
        ({"PhotometricInterpretation": "RGB"}, "colour is not supported"),
        ({"PhotometricInterpretation": None}, "colour is not supported"),
        ({"PixelData": None}, "no integer pixel data"),
        ({"BitsStored": 40}, "another way than 1 to 16 bits"),
        ({"BitsAllocated": 32}, "another way than 1 to 16 bits"),
        ({"BitsStored": None}, "no usable BitsStored"),
        ({"PixelRepresentation": 7}, "neither signed nor unsigned"),
        ({"RescaleSlope": 0}, "rescale slope of 0"),
        ({"RescaleSlope": 1e30}, "no usable RescaleSlope"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "unsound window"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "SECRET"}, "unsound window"),
        ({"VOILUTSequence": [Dataset()]}, "needs a lookup table"),
        ({"ModalityLUTSequence": [Dataset()]}, "needs a lookup table"),
        ({"syntax": DeflatedExplicitVRLittleEndian}, "deflated"),
    ],
)
def test_unsound_or_unsupported_headers(
    write_dicom: WriteDicom, attributes: dict[str, object], message: str
) -> None:
    assert message in _refusal(write_dicom(**attributes))


def test_a_cut_file(write_dicom: WriteDicom) -> None:
    path = write_dicom()
    content = path.read_bytes()
    for length in (140, 200, len(content) - 40):
        path.write_bytes(content[:length])
        _refusal(path)
