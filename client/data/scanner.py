"""How one hospital's mammograph turns tissue into stored numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MAX_STORED = 4095  # 12 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """The differences between hospitals.

    Attributes:
        manufacturer: A made-up name.
        inverted: Whether dense tissue is stored dark (MONOCHROME1).
        field_mm: Side of the square that a picture covers.
        gain: Stored numbers for one unit of brightness.
        offset: Stored number of brightness 0.
        noise: Standard deviation of the quantum noise at brightness 1.
        blur_mm: Standard deviation of the point spread.
        window_center: Of the display window, in stored numbers.
        window_width: Of the display window, in stored numbers.
    """

    manufacturer: str
    inverted: bool
    field_mm: float
    gain: float
    offset: float
    noise: float
    blur_mm: float
    window_center: float
    window_width: float


def scanner_of(hospital: int, seed: int) -> Scanner:
    """The scanner of hospital 1, 2, ...; every second one stores MONOCHROME1."""
    generator = np.random.default_rng([seed, 4, hospital])
    inverted = hospital % 2 == 0
    gain = generator.uniform(2400, 3000)
    offset = generator.uniform(200, 500)
    # The display shows brightness 0.1 to 0.8, a little more or less at each hospital.
    low = offset + gain * generator.normal(0.1, 0.02)
    width = gain * generator.uniform(0.65, 0.75)
    center = low + width / 2
    return Scanner(
        manufacturer=f"Phantom Imaging {'ABCDEFGH'[(hospital - 1) % 8]}",
        inverted=inverted,
        field_mm=float(generator.uniform(32, 37)),
        gain=float(gain),
        offset=float(offset),
        noise=float(generator.uniform(0.015, 0.04)),
        blur_mm=float(generator.uniform(0.2, 0.6)),
        window_center=round(_MAX_STORED - center if inverted else center, 1),
        window_width=round(float(width), 1),
    )


def expose(
    picture: npt.NDArray[np.float32], scanner: Scanner, generator: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """Blurs a picture, adds quantum noise and stores it in 12 bits.

    Args:
        picture: (S, S), about 0 to 1, bright where dense.
        scanner: The device.
        generator: Source of the noise.

    Returns:
        (S, S) stored numbers, dark where dense if the scanner is inverted.
    """
    sharp = _blur(picture, scanner.blur_mm * picture.shape[0] / scanner.field_mm)
    sigma = scanner.noise * np.sqrt(np.clip(sharp, 0.05, 1))
    noisy = sharp + sigma * generator.standard_normal(sharp.shape)
    stored = np.clip(np.rint(scanner.offset + scanner.gain * noisy), 0, _MAX_STORED)
    return (_MAX_STORED - stored if scanner.inverted else stored).astype(np.uint16)


def _blur(picture: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float64]:
    """Gaussian blur by the Fourier transform; ``sigma`` in pixels."""
    size = picture.shape[0]
    y = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(size)) ** 2)
    x = np.exp(-2 * (np.pi * sigma * np.fft.rfftfreq(size)) ** 2)
    # Mirrored padding would cost four times as much; the wrap at the border is below the noise.
    return np.fft.irfft2(np.fft.rfft2(picture) * y[:, None] * x[None, :], s=picture.shape)
