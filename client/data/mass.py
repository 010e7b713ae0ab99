"""A synthetic breast mass: its shape, and pictures of it in tissue.

The look follows what radiologists read (BI-RADS): benign masses tend to be round or oval with a
smooth, sharp margin; malignant ones irregular, spiculated and denser. Every feature overlaps
between the classes. Lengths are in millimetres, pictures cover ``field_mm`` on each side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Picture = npt.NDArray[np.float32]

_NUM_HARMONICS = 5
_MAX_SPICULES = 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mass:
    """What all views of one mass share.

    Attributes:
        radius_mm: Mean radius.
        elongation: Long over short axis, 1 is round.
        lobes: (5,) complex amplitudes of the outline's harmonics 2 to 6, relative to the radius.
        margin_mm: Width over which the edge fades.
        contrast: Brightness above the tissue.
        spicule_angles: (K,) radians.
        spicule_lengths_mm: (K,) how far each reaches beyond the margin.
        spicule_contrast: Brightness of a spicule at its root.
    """

    radius_mm: float
    elongation: float
    lobes: npt.NDArray[np.complex128]
    margin_mm: float
    contrast: float
    spicule_angles: npt.NDArray[np.float64]
    spicule_lengths_mm: npt.NDArray[np.float64]
    spicule_contrast: float


def draw_mass(generator: np.random.Generator, *, malignant: bool) -> Mass:
    """Draws a mass; each feature has its own noise around what the class suggests."""
    sign = 1.0 if malignant else -1.0

    def suspicion(strength: float) -> float:
        """A standard normal score, moved apart for the two classes by 2 ``strength``."""
        return sign * strength + generator.standard_normal()

    irregularity = min(0.05 * np.exp(0.4 * suspicion(1.5)), 0.15)
    phases = generator.uniform(0, 2 * np.pi, _NUM_HARMONICS)
    weights = generator.uniform(0.4, 1.0, _NUM_HARMONICS)
    num_spicules = int(np.clip(round(6 + 5 * suspicion(2.1)), 0, _MAX_SPICULES))
    radius = float(np.clip(generator.normal(8.5, 1.6), 5.0, 12.0))
    return Mass(
        radius_mm=radius,
        elongation=float(generator.uniform(1.0, 1.5)),
        lobes=irregularity * weights * np.exp(1j * phases),
        margin_mm=float(np.clip(1.3 * np.exp(0.5 * suspicion(1.9)), 0.4, 5.0)),
        contrast=float(np.clip(0.28 + 0.05 * suspicion(0.4), 0.10, 0.5)),
        spicule_angles=generator.uniform(0, 2 * np.pi, num_spicules),
        spicule_lengths_mm=generator.uniform(0.5, 1.3, num_spicules) * radius,
        spicule_contrast=float(np.clip(0.28 + 0.04 * suspicion(0.3), 0.08, 0.4)),
    )


def draw_view(
    generator: np.random.Generator, mass: Mass, *, density: int, size: int, field_mm: float
) -> _Picture:
    """Pictures a mass from a new direction, in tissue of its own.

    Args:
        generator: Source of the direction, the position and the tissue.
        mass: What to picture.
        density: Breast density, 1 (fatty) to 4 (dense).
        size: S, in pixels.
        field_mm: Side of the picture.

    Returns:
        (S, S), about 0 to 1, bright where dense.
    """
    turn = generator.normal(0, 0.35)
    squeeze = generator.uniform(0.85, 1.15)
    radius, angle = _polar_grid(generator, size=size, field_mm=field_mm)
    tissue = _draw_tissue(generator, density=density, size=size)
    reach = _outline(mass, angle - turn, squeeze)
    body = 1 / (1 + np.exp(np.clip((radius - reach) * (4 / mass.margin_mm), -30, 30)))
    inside = 1 + 0.25 * _cloud(generator, size, power=2.5)
    picture = tissue + mass.contrast * body * inside
    picture += _spicules(generator, mass, radius, angle - turn) * (1 - body)
    return picture.astype(np.float32)


def _polar_grid(
    generator: np.random.Generator, *, size: int, field_mm: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distance (mm) and angle from a centre near the middle, each (S, S)."""
    row, column = generator.normal(0, 0.04 * field_mm, 2)
    axis = (np.arange(size) + 0.5) * (field_mm / size) - field_mm / 2
    y, x = axis[:, None] - row, axis[None, :] - column
    return np.hypot(y, x), np.arctan2(y, x)


def _outline(mass: Mass, angle: npt.NDArray[np.float64], squeeze: float) -> npt.NDArray[np.float64]:
    """Distance of the margin from the centre in each direction, in mm."""
    ratio = mass.elongation * squeeze
    oval = 1 / np.sqrt(ratio * np.cos(angle) ** 2 + np.sin(angle) ** 2 / ratio)
    orders = np.arange(2, 2 + _NUM_HARMONICS)
    waves = np.exp(1j * angle[..., None] * orders) @ mass.lobes
    return mass.radius_mm * oval * np.clip(1 + waves.real, 0.4, 1.8)


def _spicules(
    generator: np.random.Generator,
    mass: Mass,
    radius: npt.NDArray[np.float64],
    angle: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Thin, slightly bent lines that leave the mass and fade, (S, S)."""
    picture = np.zeros_like(radius)
    beyond = np.maximum(radius - 0.8 * mass.radius_mm, 0)
    for theta, length in zip(mass.spicule_angles, mass.spicule_lengths_mm, strict=True):
        bend = generator.normal(0, 0.02)
        away = angle - theta - bend * beyond
        ahead = np.cos(away) > 0
        fade = np.clip(1 - beyond / length, 0, 1)
        width_mm = 0.6 + 1.1 * fade
        line = np.exp(-0.5 * (radius * np.sin(away) / width_mm) ** 2)
        picture = np.maximum(picture, np.where(ahead, line * np.sqrt(fade), 0))
    return mass.spicule_contrast * picture


def _draw_tissue(
    generator: np.random.Generator, *, density: int, size: int
) -> npt.NDArray[np.float64]:
    """Fat and glandular tissue: a cloud, a slope and a few strands, (S, S)."""
    axis = np.linspace(-0.5, 0.5, size)
    direction = generator.uniform(0, 2 * np.pi)
    slope = np.cos(direction) * axis[:, None] + np.sin(direction) * axis[None, :]
    level = 0.22 + 0.05 * density + generator.normal(0, 0.04)
    tissue = level + 0.1 * generator.uniform() * slope
    tissue = tissue + (0.02 + 0.008 * density) * _cloud(generator, size, power=3.0)
    return tissue + _strands(generator, size)


def _cloud(generator: np.random.Generator, size: int, *, power: float) -> npt.NDArray[np.float64]:
    """Noise of unit variance whose power falls as frequency to ``-power``, (S, S).

    Mammographic tissue has a power near 3 (Burgess, Jacobson and Judy, 2001, Human observer
    detection experiments with mammograms and power-law noise, Medical Physics 28).
    """
    y = np.fft.fftfreq(size)[:, None]
    x = np.fft.rfftfreq(size)[None, :]
    frequency = np.hypot(y, x)
    # The lowest frequencies would be brightness and slope, which are drawn elsewhere.
    frequency = np.maximum(frequency, 2 / size)
    spectrum = np.fft.rfft2(generator.standard_normal((size, size))) * frequency ** (-power / 2)
    spectrum[0, 0] = 0
    cloud = np.fft.irfft2(spectrum, s=(size, size))
    return cloud / cloud.std()


def _strands(generator: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """Ligaments and vessels that cross the picture: lines that are no spicules, (S, S)."""
    axis = np.linspace(-1, 1, size)
    picture = np.zeros((size, size))
    for _ in range(int(generator.integers(1, 6))):
        direction, offset = generator.uniform(0, np.pi), generator.uniform(-0.9, 0.9)
        along = np.cos(direction) * axis[None, :] + np.sin(direction) * axis[:, None]
        across = np.cos(direction) * axis[:, None] - np.sin(direction) * axis[None, :]
        bent = across - offset - generator.normal(0, 0.15) * along**2
        width = generator.uniform(0.02, 0.05)
        picture += generator.uniform(0.03, 0.1) * np.exp(-0.5 * (bent / width) ** 2)
    return picture
