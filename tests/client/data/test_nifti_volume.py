from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.data.nifti_volume import read_nifti_volume
from common.errors import DataError

VALUES = np.random.default_rng(0).integers(-1024, 2000, (4, 5, 6)).astype(np.int16)
LPS = np.diag([-0.5, -0.75, 2.5, 1.0])  # NIfTI counts to the right and to the front


def _write(path: Path, values: np.ndarray = VALUES, affine: np.ndarray = LPS) -> Path:
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_voxels_and_spacing(tmp_path: Path, name: str) -> None:
    volume = read_nifti_volume(_write(tmp_path / name))
    assert np.array_equal(volume.values, VALUES.T)
    assert volume.spacing_mm == pytest.approx((2.5, 0.75, 0.5))


def test_the_other_common_orientation_is_the_same_body(tmp_path: Path) -> None:
    ras = _write(tmp_path / "ras.nii", VALUES[::-1, ::-1], np.diag([0.5, 0.75, 2.5, 1.0]))
    assert np.array_equal(read_nifti_volume(ras).values, VALUES.T)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES, LPS)
    image.header.set_slope_inter(2.0, -1000.0)
    image.to_filename(tmp_path / "v.nii")
    stored = bytearray((tmp_path / "v.nii").read_bytes())
    start = struct.unpack_from("<f", stored, 108)[0]
    stored[int(start) :] = VALUES.T.tobytes()
    (tmp_path / "v.nii").write_bytes(stored)
    volume = read_nifti_volume(tmp_path / "v.nii")
    assert np.array_equal(volume.values, VALUES.T * 2.0 - 1000)


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_nifti_volume(path)
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("offset", "form", "values", "message"),
    [
        (40, "<8h", (3, 30000, 30000, 30000, 1, 1, 1, 1), "allowed are 3 axes"),
        (40, "<8h", (3, -4, 5, 6, 1, 1, 1, 1), "allowed are 3 axes"),
        (40, "<8h", (4, 4, 5, 6, 2, 1, 1, 1), "more than three axes"),
        (40, "<8h", (2, 4, 5, 1, 1, 1, 1, 1), "fewer than 3 axes"),
        (108, "<f", (2e9,), "unsound NIfTI header"),
        (344, "<4s", (b"ni1\0",), "neither a folder of DICOM slices nor"),
        (70, "<h", (12345,), "cannot be decoded"),
        (280, "<12f", (0.0,) * 12, "no sensible size"),
    ],
)
def test_unsound_headers_are_refused(
    tmp_path: Path, offset: int, form: str, values: tuple[object, ...], message: str
) -> None:
    path = _write(tmp_path / "secret.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 1)  # only the affine matrix counts
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)
    assert message in _refusal(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "secret.nii")
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be decoded" in _refusal(path)
    packed = tmp_path / "secret.nii.gz"
    packed.write_bytes(gzip.compress(_write(tmp_path / "b.nii").read_bytes())[:-30])
    assert "cannot be decoded" in _refusal(packed)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[0, 0, 0] = np.nan
    assert "not finite" in _refusal(_write(tmp_path / "secret.nii", values))


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.nii").write_bytes(b"hello")
    assert "neither a folder of DICOM slices nor" in _refusal(tmp_path / "secret.nii")
