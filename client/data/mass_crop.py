"""Where a mass is in a mammogram, and the square that is cut out around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

MARGIN = 60
"""Pixels around the bounding box on each side."""

SMALLEST = 128
"""Smallest side of a crop, in pixels."""

_JITTER = 0.05  # of the side, in the released crops
_EIGHT = np.ones((3, 3), dtype=bool)  # neighbours of a pixel, corners included
_FOUR = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A rectangle of pixels: its upper left corner and its sides."""

    x: int
    y: int
    width: int
    height: int

    def cut(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The part of an image (H, W) inside the rectangle, which must lie in the image."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


def nearest(mask: Mask, shape: tuple[int, int]) -> Mask:
    """Stretches a mask to ``shape`` by taking the nearest pixel."""
    rows, columns = (
        np.minimum(np.arange(new) * old // new, old - 1)
        for new, old in zip(shape, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def box_of_mass(mask: Mask) -> Box | None:
    """The bounding box of the largest connected part of a mask (H, W), None if it is empty."""
    parts = _parts(mask, _EIGHT)
    if not parts.any():
        return None
    areas = np.bincount(parts.ravel())[1:]
    return _box(ndimage.find_objects(parts)[int(areas.argmax())])


def square_around(box: Box, shape: tuple[int, int]) -> Box:
    """The square around the middle of ``box``: its longer side and two margins, within the image.

    Args:
        box: Of a mass.
        shape: Height and width of the mammogram, which bound the square.
    """
    side = min(max(box.width, box.height) + 2 * MARGIN, *shape)
    side = max(side, min(SMALLEST, *shape))
    y, x = (
        min(max(start + length // 2 - side // 2, 0), most - side)
        for start, length, most in (
            (box.y, box.height, shape[0]),
            (box.x, box.width, shape[1]),
        )
    )
    return Box(x=x, y=y, width=side, height=side)


def paper_boxes(mask: Mask) -> tuple[Box, ...]:
    """Bounding boxes of all contours of a mask as Osuala et al. 2024 found them.

    Every fourth pixel, morphological closing with 9 x 9 ones, then each outline of a connected part
    or of a hole in one; equal boxes once.
    """
    # Room for what grows past the border, so that a mass there stays what it is.
    small = np.pad(mask[::4, ::4], 4)
    closed = np.asarray(ndimage.binary_closing(small, np.ones((9, 9))), dtype=np.bool_)[4:-4, 4:-4]
    parts = _parts(closed, _EIGHT)
    filled = np.asarray(ndimage.binary_fill_holes(closed), dtype=np.bool_)
    holes = _parts(filled & ~closed, _FOUR)
    boxes = [_box(found, scale=4) for found in ndimage.find_objects(parts)]
    # The outline of a hole runs on the pixels around it.
    boxes += [_box(found, scale=4, border=1) for found in ndimage.find_objects(holes)]
    return tuple(dict.fromkeys(boxes))


def paper_square(
    box: Box, shape: tuple[int, int], jitter: np.random.Generator | None = None
) -> Box:
    """The crop of Osuala et al. 2024 around ``box``, oddities included.

    The width alone decides the side, so a mass much taller than wide is cut off; the margin is
    subtracted from the upper edge twice, so masses lie low in their crops; and the random shift is
    always up and to the left, by 5 % of the side or more.

    Args:
        box: Of a mass.
        shape: Height and width of the mammogram.
        jitter: Draws the random size and shift of the released crops; without it there is none.
    """
    side = box.width + 2 * MARGIN
    zoom = 0 if jitter is None else int(jitter.normal(_JITTER * side, _JITTER * side)) // 2
    side += zoom
    x = _shifted(box.x - zoom, side, jitter)
    if side < SMALLEST:
        x, side = x - (SMALLEST - box.width) // 2, SMALLEST
    else:
        x -= MARGIN
    y = _shifted(box.y - (side - box.height) // 2, side, jitter) - MARGIN
    side = min(side, *shape)
    y, x = (min(max(start, 0), most - side) for start, most in ((y, shape[0]), (x, shape[1])))
    return Box(x=x, y=y, width=side, height=side)


def _parts(mask: Mask, neighbours: Mask) -> npt.NDArray[np.int32]:
    """Numbers the connected parts of a mask from 1; 0 is outside."""
    parts = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, neighbours, output=parts)
    return parts


def _shifted(start: int, side: int, jitter: np.random.Generator | None) -> int:
    shift = 0
    if jitter is not None:
        shift = min(int(-_JITTER * side), int(jitter.normal(0, _JITTER * side)))
    return max(0, start + shift)


def _box(found: tuple[slice, slice], *, scale: int = 1, border: int = 0) -> Box:
    rows, columns = found
    return Box(
        x=scale * columns.start - border,
        y=scale * rows.start - border,
        width=scale * (columns.stop - columns.start) + 2 * border,
        height=scale * (rows.stop - rows.start) + 2 * border,
    )
