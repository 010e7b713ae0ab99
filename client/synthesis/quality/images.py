"""Synthetic images with their classes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from common.errors import UsageError

Images = npt.NDArray[np.float32]
"""(n, 1, S, S) in [0, 1]."""

Features = npt.NDArray[np.float64]
"""(n, d), one row an image."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledImages:
    """Images that belong to nobody.

    Attributes:
        images: (n, 1, S, S) in [0, 1].
        labels: (n,) the class of each.

    Raises:
        UsageError: shapes do not fit, there is no image, or a value is not in [0, 1].
    """

    images: Images = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)

    def __post_init__(self) -> None:
        check_images(self.images, "synthetic images")
        labels = self.labels
        if labels.shape != (len(self.images),) or labels.dtype.kind not in "iu":
            raise UsageError(
                f"synthetic labels {labels.shape} of {labels.dtype}: must be one whole number for "
                f"each of {len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.images)


def check_images(images: npt.NDArray[np.float32], what: str) -> None:
    """Refuses what is not a set of grey square images.

    Raises:
        UsageError: The shape is not (n, 1, S, S) with n and S at least 1, or a value is not in
            [0, 1].
    """
    shape = images.shape
    if len(shape) != 4 or shape[1] != 1 or shape[2] != shape[3] or 0 in shape:
        raise UsageError(f"{what} {shape}: must be grey squares, (n, 1, S, S) with n at least 1")
    # One image at a time: a boolean for each pixel of a large set is memory for nothing.
    if not all(bool(image.min() >= 0) and bool(image.max() <= 1) for image in images):
        raise UsageError(f"{what}: every value must be a number from 0 to 1")
