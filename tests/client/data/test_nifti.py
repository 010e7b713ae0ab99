from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.data.image import read_image
from common.errors import DataError

_VALUES = np.arange(48, dtype=np.int16).reshape(6, 8) - 20  # (x, y)


def _save(path: Path, values: np.ndarray) -> Path:
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1)])
def test_rows_run_down_and_values_fill_the_range(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    read = read_image(_save(tmp_path / name, _VALUES.reshape(shape)))
    assert read.dtype == np.float32
    assert np.allclose(read, (_VALUES.T + 20) / 47, atol=1e-6)


def test_big_endian(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(_VALUES, np.eye(4))
    header = image.header.as_byteswapped(">")
    nibabel.Nifti1Image(_VALUES, np.eye(4), header).to_filename(tmp_path / "image.nii")
    assert np.allclose(read_image(tmp_path / "image.nii"), (_VALUES.T + 20) / 47, atol=1e-6)


def test_a_constant_image_is_black(tmp_path: Path) -> None:
    read = read_image(_save(tmp_path / "image.nii", np.full((5, 7), 3, dtype=np.int16)))
    assert np.array_equal(read, np.zeros((7, 5)))


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_image(path)
    assert "secret" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["secret.nii", "secret.nii.gz"])
def test_volumes_are_refused(tmp_path: Path, name: str) -> None:
    path = _save(tmp_path / name, np.zeros((4, 5, 6), dtype=np.int16))
    assert "is not a 2D image; volumes cannot be read" in _refusal(path)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ((40, "<8h", (2, 30000, 30000, 1, 1, 1, 1, 1)), "says it has 30000 x 30000 pixels"),
        ((40, "<8h", (2, -6, 8, 1, 1, 1, 1, 1)), "says it has 8 x -6 pixels"),
        ((40, "<8h", (2, 6000, 8000, 1, 1, 1, 1, 1)), "cannot be decoded"),
        ((40, "<8h", (9, 6, 8, 1, 1, 1, 1, 1)), "unsound NIfTI header"),
        ((108, "<f", (1e12,)), "unsound NIfTI header"),
        ((108, "<f", (float("nan"),)), "unsound NIfTI header"),
        ((70, "<h", (4242,)), "cannot be decoded"),
        ((0, "<i", (7,)), "is not a NIfTI-1 file"),
        ((344, "4s", (b"ni1\x00",)), "half a pair"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_unsound_headers(
    tmp_path: Path, patch: tuple[int, str, tuple[object, ...]], message: str, compressed: bool
) -> None:
    offset, form, value = patch
    content = bytearray(_save(tmp_path / "sound.nii", _VALUES).read_bytes())
    struct.pack_into(form, content, offset, *value)
    path = tmp_path / ("secret.nii.gz" if compressed else "secret.nii")
    path.write_bytes(gzip.compress(bytes(content)) if compressed else bytes(content))
    assert message in _refusal(path)


def test_nifti_2_is_refused(tmp_path: Path) -> None:
    nibabel.Nifti2Image(_VALUES, np.eye(4)).to_filename(tmp_path / "secret.nii")
    assert "NIfTI-2" in _refusal(tmp_path / "secret.nii")
