from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.data import image as image_module
from client.data.image import MAX_PIXELS, read_image, resize
from common.errors import DataError

_RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def _refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_image(path)
    text = str(error.value)
    assert "secret" not in text
    assert "\n" not in text
    assert error.value.__cause__ is None
    return text


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_png_of_any_mode_is_grey(tmp_path: Path, mode: str) -> None:
    Image.fromarray(_RAMP).convert(mode).save(tmp_path / "image.png")
    read = read_image(tmp_path / "image.png")
    assert read.dtype == np.float32
    assert read.shape == (6, 8)
    assert np.abs(read - _RAMP / 255).max() <= 1 / 255


def test_transparency_is_ignored(tmp_path: Path) -> None:
    pixels = np.dstack([_RAMP, _RAMP, _RAMP, np.zeros_like(_RAMP)])
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.allclose(read_image(tmp_path / "image.png"), _RAMP / 255)


def test_png_of_16_bits_keeps_them(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.allclose(read_image(tmp_path / "image.png"), pixels / 65535, atol=1e-6)


def test_jpeg(tmp_path: Path) -> None:
    Image.fromarray(_RAMP).save(tmp_path / "image.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "image.jpg") - _RAMP / 255).max() < 0.02


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(_RAMP).save(tmp_path / "image.dcm", format="PNG")
    assert np.allclose(read_image(tmp_path / "image.dcm"), _RAMP / 255)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (_RAMP, _RAMP / 255),
        (_RAMP.astype(np.uint16) * 200, _RAMP * 200.0 / 65535),
        (_RAMP > 100, (_RAMP > 100).astype(float)),
        (_RAMP / 255, _RAMP / 255),
        ((_RAMP / 255).astype(np.float16), _RAMP / 255),
        (np.asfortranarray(_RAMP), _RAMP / 255),
    ],
)
def test_numpy(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    np.save(tmp_path / "image.npy", array)
    read = read_image(tmp_path / "image.npy")
    assert read.dtype == np.float32
    assert np.allclose(read, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4)), "array of 3 dimensions; only 2D"),
        (np.full((4, 4), 1.5), "floats outside"),
        (np.full((4, 4), np.nan), "floats outside"),
        (np.zeros((4, 4), dtype=np.int16), "array of int16"),
        (np.zeros((4, 4), dtype=complex), "array of complex128"),
        (np.zeros((0, 4)), "says it has 0 x 4 pixels"),
        (np.array([[{"secret": 1}]]), "cannot be decoded"),
    ],
)
def test_unsound_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "secret.npy", array, allow_pickle=True)
    assert message in _refusal(tmp_path / "secret.npy")


def test_an_array_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", np.zeros((4, 4), dtype=np.uint8))
    content = (tmp_path / "secret.npy").read_bytes().replace(b"(4, 4)", b"(9000000, 9000000)")
    (tmp_path / "secret.npy").write_bytes(content)
    assert "cannot be decoded" in _refusal(tmp_path / "secret.npy")


@pytest.mark.parametrize("content", [b"", b"secret", b"\x00" * 4096, b"\x1f\x8bsecret"])
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret.png").write_bytes(content)
    _refusal(tmp_path / "secret.png")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "cannot be opened (FileNotFoundError)" in _refusal(tmp_path / "secret.png")
    assert "cannot be opened (IsADirectoryError)" in _refusal(tmp_path)


def test_a_damaged_png(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "secret.png")
    content = (tmp_path / "secret.png").read_bytes()
    (tmp_path / "secret.png").write_bytes(content[: len(content) // 2])
    assert "cannot be decoded" in _refusal(tmp_path / "secret.png")


def test_a_png_that_inflates_beyond_the_limit(tmp_path: Path) -> None:
    side = 8300  # above the limit of pixels, below the one at which Pillow warns
    assert side * side > MAX_PIXELS
    Image.new("1", (side, side)).save(tmp_path / "secret.png")
    assert "says it has 8300 x 8300 pixels" in _refusal(tmp_path / "secret.png")


def test_a_file_beyond_the_limit_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(_RAMP).save(tmp_path / "secret.png")
    monkeypatch.setattr(image_module, "MAX_FILE_BYTES", 50)
    assert "the limit is" in _refusal(tmp_path / "secret.png")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_resize_stays_in_range(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    scaled = resize(image, size)
    assert scaled.shape == (size, size)
    assert scaled.dtype == np.float32
    assert image.min() - 1e-6 <= scaled.min()
    assert scaled.max() <= image.max() + 1e-6


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 2**32))
def test_resize_shrinks_by_area(factor: int, size: int, seed: int) -> None:
    side = factor * size
    image = np.random.default_rng(seed).random((side, side), dtype=np.float32)
    means = image.reshape(size, factor, size, factor).mean((1, 3))
    assert np.allclose(resize(image, size), means, atol=1e-5)


def test_resize_of_the_right_size_changes_nothing() -> None:
    image = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    assert np.array_equal(resize(image, 16), image)
