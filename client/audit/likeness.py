"""How alike two images are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

_SIGMA, _RADIUS = 1.5, 5  # a window of 11 x 11, as in the paper
_K1, _K2 = 0.01, 0.03


def psnr(image: ArrayLike, other: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; infinite for equal ones.

    >>> round(psnr([[0.0, 0.5]], [[0.1, 0.5]]), 2)
    23.01
    """
    one, two = _pair(image, other)
    error = float(np.square(one - two).mean())
    return -10 * math.log10(error) if error else math.inf


def ssim(image: ArrayLike, other: ArrayLike) -> float:
    """Mean structural similarity of images in [0, 1]: 1 for equal ones, about 0 for unrelated.

    Wang, Bovik, Sheikh, Simoncelli 2004, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE Transactions on Image Processing 13(4), with its Gaussian window
    and constants; borders are mirrored.

    Raises:
        ValueError: if the shapes differ, or are not (H, W).
    """
    one, two = _pair(image, other)
    mean_one, mean_two = _blurred(one), _blurred(two)
    variances = _blurred(one * one) - mean_one**2 + _blurred(two * two) - mean_two**2
    covariance = _blurred(one * two) - mean_one * mean_two
    c1, c2 = _K1**2, _K2**2
    found = (2 * mean_one * mean_two + c1) * (2 * covariance + c2)
    found /= (mean_one**2 + mean_two**2 + c1) * (variances + c2)
    return float(found.mean())


def _blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(gaussian_filter(image, _SIGMA, radius=_RADIUS), dtype=np.float64)


def _pair(image: ArrayLike, other: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, two = np.asarray(image, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.ndim != 2 or one.shape != two.shape:
        raise ValueError(f"images {one.shape} and {two.shape}: must be (H, W), both the same")
    return one, two
