"""Volumes: from voxels with physical sizes to a grid in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from common.config import VolumeConfig
from common.errors import DataError

Array = npt.NDArray[np.float32]

_MAX_VOXELS = 1 << 28  # 1 GiB: a CT of 1,024 slices
_AXES = {"inferior to superior": 2, "anterior to posterior": 1, "right to left": 0}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Volume:
    """A CT volume as radiologists stack it.

    Attributes:
        values: (D, H, W) in HU: slices from the feet to the head, rows from front to back, columns
            from the patient's right to the left.
        spacing_mm: Between slices, rows and columns.
    """

    values: Array = field(repr=False)
    spacing_mm: tuple[float, float, float]

    @classmethod
    def oriented(cls, values: Array, axes: npt.NDArray[np.float64]) -> Volume:
        """Turns an array the way its axes ask for; oblique ones to the nearest right angle.

        Args:
            values: Any (A, B, C).
            axes: (3, 3), a row for each axis of the array: the step from one voxel to the next in
                mm, towards the patient's left, back and head.

        Raises:
            DataError: The axes are no box with sensible sides.
        """
        check_voxels(values.shape)
        lengths = np.linalg.norm(axes, axis=1)
        if not (np.isfinite(axes).all() and (lengths > 0.01).all() and (lengths < 100).all()):
            raise DataError("has voxels of no sensible size")
        cosines = axes / lengths[:, None]
        if np.abs(cosines @ cosines.T - np.eye(3)).max() > 0.05:
            raise DataError("has axes that are not at right angles (a tilted gantry?)")
        order = _nearest_axes(cosines)
        turned = np.transpose(values, order)
        signs = [cosines[axis, world] for axis, world in zip(order, _AXES.values(), strict=True)]
        turned = turned[tuple(slice(None, None, 1 if sign > 0 else -1) for sign in signs)]
        slices, rows, columns = (float(lengths[axis]) for axis in order)
        return cls(values=np.ascontiguousarray(turned), spacing_mm=(slices, rows, columns))

    def on_grid(self, config: VolumeConfig, image_size: int) -> Array:
        """Windows and resamples the volume, along each axis by area or linearly.

        Args:
            config: Window, number of slices and spacings.
            image_size: S, in pixels.

        Returns:
            (D, S, S) in [0, 1].
        """
        low = np.float32(config.window_center - config.window_width / 2)
        # Cut before averaging: metal beside an edge would wash it out. Outside is 0, the darkest.
        values = np.clip(self.values - low, 0, np.float32(config.window_width))
        shape = (config.depth, image_size, image_size)
        if config.slice_spacing_mm is None or config.pixel_spacing_mm is None:
            values = resize_volume(values, shape)
        else:
            wanted = (config.slice_spacing_mm, config.pixel_spacing_mm, config.pixel_spacing_mm)
            for axis, size in enumerate(shape):
                step = wanted[axis] / self.spacing_mm[axis]
                values = _apply(_weights(values.shape[axis], size, step), values, axis)
        return np.ascontiguousarray(np.clip(values / np.float32(config.window_width), 0, 1))


def check_voxels(shape: tuple[int, ...]) -> None:
    """Refuses a size that no sound volume has.

    Raises:
        DataError: It is no three numbers from 1 on, or there are more than 2^28 voxels.
    """
    if len(shape) != 3 or min(shape) < 1 or int(np.prod(shape, dtype=np.int64)) > _MAX_VOXELS:
        sides = " x ".join(map(str, shape))
        raise DataError(f"says it has {sides} voxels; allowed are 3 axes and {_MAX_VOXELS} in all")


def resize_volume(volume: Array, shape: tuple[int, ...]) -> Array:
    """Stretches a volume to ``shape``: along each axis by area where it shrinks, else linearly.

    Voxels are boxes whose outer faces stay where they are, as in `client.data.image.resize`.

    Args:
        volume: (D, H, W).
        shape: The new (D, H, W).

    Returns:
        The volume of that shape, within the range of the old one.
    """
    for axis, size in enumerate(shape):
        length = volume.shape[axis]
        if length != size:
            volume = _apply(_weights(length, size, length / size), volume, axis)
    return np.ascontiguousarray(volume)


def _nearest_axes(cosines: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """The axis of the array that runs along the body, from front to back and across."""
    left = np.abs(cosines)
    order = {}
    for _ in range(3):
        axis, world = np.unravel_index(int(left.argmax()), left.shape)
        order[int(world)] = int(axis)
        left[axis, :] = left[:, world] = -1
    slices, rows, columns = (order[world] for world in _AXES.values())
    return slices, rows, columns


def _apply(weights: Array, volume: Array, axis: int) -> Array:
    return np.moveaxis(np.tensordot(weights, volume, axes=(1, axis)), 0, axis)


def _weights(length: int, size: int, step: float) -> Array:
    """(size, length): how much of each old cell goes into each new one.

    The new cells are ``step`` old ones wide and share the old ones' centre. They average what they
    cover; narrower ones interpolate between centres, held at the outer ones. Outside the old cells
    there is nothing: rows sum to less than 1 there.
    """
    edges = length / 2 + (np.arange(size + 1) - size / 2) * step
    cells = np.arange(length)[None]
    if step >= 1:
        low, high = edges[:-1, None], edges[1:, None]
        return (
            np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None) / step
        ).astype(np.float32)
    centers = (edges[:-1] + edges[1:]) / 2 - 0.5
    inside = (centers >= -0.5) & (centers <= length - 0.5)
    held = np.clip(centers, 0, length - 1)[:, None]
    return (np.clip(1 - np.abs(held - cells), 0, None) * inside[:, None]).astype(np.float32)
