"""DICOM files are written here with pydicom, from a ramp of stored numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    RLELossless,
)

from client.data.dicom import (
    read_dicom,
    read_dicom_volume,
    read_hounsfield,
    read_hounsfield_volume,
    read_tags,
)
from client.data.image import read_image
from common.errors import DataError

_STORED = (np.arange(48).reshape(6, 8) * 80).astype(np.uint16)  # 0 to 3,760 of 12 bits

WriteDicom = Callable[..., Path]


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


def _item(**attributes: object) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _table(first: int, bits: int, data: list[int], vr: str = "US", name: str = "") -> Dataset:
    table = _item(LUTDescriptor=[len(data) % 65536, first, bits], LUTExplanation=name)
    is_list = vr == "US"
    table.add_new(0x00283006, vr, data if is_list else np.array(data, dtype="<u2").tobytes())
    return table


def _frames(count: int) -> dict[str, object]:
    """Frames that differ by their number, from 1 on."""
    pixels = b"".join((_STORED + number).tobytes() for number in range(1, count + 1))
    return {"NumberOfFrames": count, "PixelData": pixels}


_COLORS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
_RGB = {
    "SamplesPerPixel": 3,
    "PlanarConfiguration": 0,
    "PhotometricInterpretation": "RGB",
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "PixelData": _COLORS.tobytes(),
}
_TWO_WINDOWS = {
    "WindowCenter": [700, 5],
    "WindowWidth": [1001, 101],
    "WindowCenterWidthExplanation": ["BROAD", "Bone"],
}


def _linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    # DICOM PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5), cut at 0 and 1.
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def test_a_window_by_its_name(write_dicom: WriteDicom) -> None:
    path = write_dicom(**_TWO_WINDOWS)
    assert np.allclose(read_dicom(path), _linear(_STORED, 700, 1001), atol=1e-5)
    assert np.allclose(read_dicom(path, window=" bone"), _linear(_STORED, 5, 101), atol=1e-5)
    with pytest.raises(DataError, match=r"^has no window of the asked name among its 2$"):
        read_dicom(path, window="lung")


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("has_windows", [False, True])
def test_a_table_by_its_name_and_without_windows(
    write_dicom: WriteDicom, has_windows: bool, vr: str
) -> None:
    table = _table(1000, 10, [0, 200, 1023, 500], vr, "odd")
    steps = _STORED // 2
    attributes = _TWO_WINDOWS if has_windows else {}
    path = write_dicom(VOILUTSequence=[table], PixelData=steps.tobytes(), **attributes)
    expected = np.array([0, 200, 1023, 500])[np.clip(steps.astype(int) - 1000, 0, 3)] / 1023
    assert np.allclose(read_dicom(path, window="ODD"), expected, atol=1e-6)
    assert np.allclose(read_dicom(path), expected, atol=1e-6) is not has_windows


def test_a_modality_table_comes_before_the_window(write_dicom: WriteDicom) -> None:
    table = _table(0, 16, list(range(0, 512, 2)))
    path = write_dicom(ModalityLUTSequence=[table], WindowCenter=200, WindowWidth=101)
    doubled = 2 * np.minimum(_STORED.astype(int), 255)
    assert np.allclose(read_dicom(path), _linear(doubled, 200, 101), atol=1e-5)


def test_a_table_of_bytes(write_dicom: WriteDicom) -> None:
    table = _item(LUTDescriptor=[255, 0, 8])
    table.add_new(0x00283006, "OW", bytes(range(255)) + b"\x00")
    path = write_dicom(VOILUTSequence=[table])
    assert np.allclose(read_dicom(path), np.minimum(_STORED, 254) / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_the_grey_scale(
    write_dicom: WriteDicom, photometric: str
) -> None:
    padding = {"PixelPaddingValue": 3000, "PixelPaddingRangeLimit": 2960}
    path = write_dicom(PhotometricInterpretation=photometric, **padding)
    is_padding = (_STORED >= 2960) & (_STORED <= 3000)
    assert is_padding.any()
    read = read_dicom(path)
    assert np.array_equal(read == 0, is_padding | (read == 0))
    grey = _STORED / 4095 if photometric == "MONOCHROME2" else 1 - _STORED / 4095
    assert np.allclose(read, np.where(is_padding, 0, grey), atol=1e-6)


def test_padding_of_the_wrong_number_type(write_dicom: WriteDicom) -> None:
    signed = _STORED.astype(np.int16) - 2000
    stored = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}
    value = DataElement(0x00280120, "US", 65536 - 2000)
    path = write_dicom(PixelData=signed.tobytes(), **stored)
    unpadded = read_dicom(path)
    path = write_dicom(PixelData=signed.tobytes(), PixelPaddingValue=value, **stored)
    assert np.array_equal(read_dicom(path), np.where(signed == -2000, 0, unpadded))


def test_frames_are_chosen_or_read_as_a_volume(write_dicom: WriteDicom) -> None:
    path = write_dicom(**_frames(3))
    assert np.allclose(read_dicom(path, frame=3), (_STORED + 3) / 4095, atol=1e-6)
    volume = read_dicom_volume(path)
    assert volume.shape == (3, 6, 8)
    assert all(np.array_equal(volume[i], read_dicom(path, frame=i + 1)) for i in range(3))
    for frame, message in (
        (None, "has 3 frames: choose one (frame) or read them as a volume"),
        (0, "has no frame 0: its frames are 1 to 3"),
        (4, "has no frame 4: its frames are 1 to 3"),
    ):
        with pytest.raises(DataError) as error:
            read_dicom(path, frame=frame)
        assert str(error.value) == message


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_frames_with_their_own_grey_scale(write_dicom: WriteDicom, syntax: str) -> None:
    def group(slope: float, center: float) -> Dataset:
        rescale = _item(RescaleSlope=slope, RescaleIntercept=-1024, RescaleType="HU")
        return _item(
            PixelValueTransformationSequence=Sequence([rescale]),
            FrameVOILUTSequence=Sequence([_item(WindowCenter=center, WindowWidth=2001)]),
        )

    shared = _item(FrameAnatomySequence=Sequence([_item(FrameLaterality="R")]))
    path = write_dicom(
        syntax,
        Modality="CT",
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([group(1, 0), group(0.5, 40)]),
        **_frames(2),
    )
    units = np.stack([(_STORED + 1.0) - 1024, (_STORED + 2.0) * 0.5 - 1024])
    assert np.allclose(read_hounsfield_volume(path), units, atol=1e-3)
    assert np.allclose(read_hounsfield(path, frame=2), units[1], atol=1e-3)
    grey = np.stack([_linear(units[0], 0, 2001), _linear(units[1], 40, 2001)])
    assert np.allclose(read_dicom_volume(path), grey, atol=1e-5)
    assert np.allclose(read_dicom_volume(path, side="L"), grey[..., ::-1], atol=1e-5)


def test_hounsfield_units(write_dicom: WriteDicom) -> None:
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1024, "Modality": "CT"}
    path = write_dicom(**rescale, PixelPaddingValue=80, WindowCenter=1, WindowWidth=2)
    expected = np.where(_STORED == 80, -1000, _STORED * 2.0 - 1024)
    assert np.array_equal(read_hounsfield(path), expected)
    for changed, message in (
        ({"Modality": "MR"}, "is not a grey CT image"),
        ({"Modality": ""}, "is not a grey CT image"),
        ({"RescaleSlope": ""}, "without a slope and an intercept"),
        ({"RescaleType": "US"}, "without a slope and an intercept"),
        ({"ModalityLUTSequence": [Dataset()]}, "without a slope and an intercept"),
    ):
        with pytest.raises(DataError, match=message):
            read_hounsfield(write_dicom(**{**rescale, **changed}))


@pytest.mark.parametrize("keyword", ["ImageLaterality", "Laterality"])
def test_the_other_side_is_mirrored(write_dicom: WriteDicom, keyword: str) -> None:
    path = write_dicom(**{keyword: "R"})
    plain = read_dicom(path)
    assert np.array_equal(read_dicom(path, side="R"), plain)
    assert np.array_equal(read_dicom(path, side="L"), plain[:, ::-1])
    for value in ("B", "U", ""):
        with pytest.raises(DataError, match=r"^does not say whether it shows"):
            read_dicom(write_dicom(**{keyword: value}), side="L")
    with pytest.raises(ValueError, match="side=left: must be"):
        read_image(path, side="left")


@pytest.mark.parametrize("planar", [0, 1])
def test_colors_become_luma(write_dicom: WriteDicom, planar: int) -> None:
    pixels = _COLORS if planar == 0 else _COLORS.transpose(2, 0, 1)
    read = read_dicom(
        write_dicom(**{**_RGB, "PlanarConfiguration": planar, "PixelData": pixels.tobytes()})
    )
    expected = (0.299 * _COLORS[..., 0] + 0.587 * _COLORS[..., 1] + 0.114 * _COLORS[..., 2]) / 255
    assert np.allclose(read, expected, atol=1e-6)
    luma = read_dicom(write_dicom(**{**_RGB, "PhotometricInterpretation": "YBR_FULL"}))
    assert np.allclose(luma, _COLORS[..., 0] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "dtype"),
    [(8, "u1"), (8, "i1"), (5, "u1"), (10, "u2"), (10, "i2"), (16, "u2"), (16, "i2")],
)
@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, DeflatedExplicitVRLittleEndian],
)
def test_any_number_of_bits(write_dicom: WriteDicom, bits: int, dtype: str, syntax: str) -> None:
    is_signed = dtype[0] == "i"
    low = -(1 << bits - 1) if is_signed else 0
    values = np.random.default_rng(bits).integers(low, low + (1 << bits), (6, 8)).astype(dtype)
    big = values.astype(np.dtype(dtype).newbyteorder(">"))
    path = write_dicom(
        syntax,
        BitsAllocated=8 * values.itemsize,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=int(is_signed),
        PixelData=(big if syntax == ExplicitVRBigEndian else values).tobytes(),
    )
    expected = (values.astype(np.float64) - low) / ((1 << bits) - 1)
    assert np.allclose(read_dicom(path), expected, atol=1e-6)


def test_single_bits_and_32_bits(write_dicom: WriteDicom) -> None:
    bits = np.random.default_rng(1).integers(0, 2, 48, dtype=np.uint8)
    one = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    packed = np.packbits(bits, bitorder="little").tobytes()
    assert np.array_equal(read_dicom(write_dicom(PixelData=packed, **one)).ravel(), bits)
    wide = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}
    wide["PixelData"] = (_STORED.astype(np.uint32) + (1 << 30)).tobytes()
    with pytest.raises(DataError, match="more than 16 bits and has no window"):
        read_dicom(write_dicom(**wide))
    # Not 1e9: beyond float32's 24 bits, differences of a few units must survive.
    window = {"RescaleIntercept": -(2**29), "WindowCenter": 2.0**29 + 2000, "WindowWidth": 4001}
    expected = _linear(_STORED.astype(float), 2000, 4001)
    assert np.allclose(read_dicom(write_dicom(**wide, **window)), expected, atol=1e-5)


def test_tags_by_keyword_and_number(write_dicom: WriteDicom) -> None:
    path = write_dicom(ImagePositionPatient=[1.5, -2, 3], SeriesNumber=4)
    names = ("PatientID", "ImagePositionPatient", "0020,0011", "PatientSex", "VOILUTSequence")
    assert read_tags(path, names) == {
        "PatientID": ("secret",),
        "ImagePositionPatient": ("1.5", "-2.0", "3.0"),
        "0020,0011": ("4",),
    }
    content = path.read_bytes()  # two bytes are no FD number
    path.write_bytes(content.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00FD"))
    assert read_tags(path, ["Rows", "PatientID"]) == {"PatientID": ("secret",)}
    deflated = write_dicom(DeflatedExplicitVRLittleEndian)
    assert read_tags(deflated, ["Rows", "(0028, 0011)"]) == {
        "Rows": ("6",),
        "(0028, 0011)": ("8",),
    }
    with pytest.raises(ValueError, match="is neither a DICOM keyword nor a number"):
        read_tags(path, ["PatientsName"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Rows": 60000, "Columns": 60000}, "says it has 60000 x 60000 pixels"),
        ({"Rows": 0}, "says it has 0 x 8 pixels"),
        ({"Rows": None}, "no usable Rows"),
        ({"Rows": 6000, "Columns": 8000}, "has 96 bytes of pixels where its header says 96000000"),
        ({"PixelData": bytes(98)}, "has 98 bytes of pixels where its header says 96"),
        ({"NumberOfFrames": 2}, "has 2 frames"),
        ({"NumberOfFrames": 0}, "says it has 0 frames"),
        ({"NumberOfFrames": 99999}, "says it has 99999 frames"),
        ({"Rows": 8000, "Columns": 8000, "NumberOfFrames": 999}, "samples over all its frames"),
        ({"SamplesPerPixel": 3}, "3 samples per pixel where its kind has 1"),
        ({"PhotometricInterpretation": "RGB"}, "1 samples per pixel where its kind has 3"),
        ({"PhotometricInterpretation": "CMYK"}, "PhotometricInterpretation that is not supported"),
        ({"PhotometricInterpretation": None}, "says nothing of its PhotometricInterpretation"),
        ({"PixelData": None}, "has no pixel data"),
        ({"PixelData": None, "FloatPixelData": bytes(192)}, "floating-point pixels"),
        ({"BitsStored": 40}, "another way than 1 to 32 bits"),
        ({"BitsAllocated": 24}, "another way than 1 to 32 bits"),
        ({"BitsStored": None}, "no usable BitsStored"),
        ({"HighBit": 15}, "other bits than the lowest"),
        ({"PixelRepresentation": 7}, "neither signed nor unsigned"),
        ({"RescaleSlope": 0}, "rescale slope of 0"),
        ({"RescaleSlope": 1e30}, "no usable RescaleSlope"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "unsound window"),
        ({"WindowCenter": 5}, "another number of window centres"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "SECRET"}, "unsound window"),
        ({"VOILUTSequence": [Dataset()]}, "unsound lookup table"),
        ({"ModalityLUTSequence": [Dataset()]}, "unsound lookup table"),
        (
            {"VOILUTSequence": [_item(LUTDescriptor=[4, 0, 16], LUTData=b"123456")]},
            "unsound lookup table",
        ),
        (
            {"syntax": HTJ2KLossless, "PixelData": encapsulate([b"secret"])},
            "transfer syntax that is not supported",
        ),
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
