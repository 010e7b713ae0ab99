"""Radiomics-like features: brightness, texture, edges and coarseness of a whole image.

No shape and no mask: a synthetic image has none. In the spirit of pyradiomics (van Griethuysen et
al. 2017, doi 10.1158/0008-5472.CAN-17-0339) and of the IBSI's definitions (Zwanenburg et al. 2020,
doi 10.1148/radiol.2020191145), on the whole image and with its own choice of features, so values
and Frechet distances are not those of pyradiomics.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from client.synthesis.quality.images import Features, Images, check_images
from client.synthesis.quality.progress import Progress, silent

LEVELS = 32
"""Grey levels that textures and entropies are counted in, equally wide over [0, 1]."""

DISTANCES = (1, 4)
"""Of the pixels whose grey levels are counted together, each in four directions."""

_BANDS = 5
_FIRST_ORDER = (
    *("mean", "std", "skewness", "kurtosis", "minimum", "p10", "median", "p90", "maximum"),
    *("interquartile_range", "mean_absolute_deviation", "robust_mean_absolute_deviation"),
    *("root_mean_square", "entropy", "uniformity"),
)
_TEXTURE = (
    *("contrast", "dissimilarity", "homogeneity", "energy", "joint_entropy", "correlation"),
    *("cluster_shade", "cluster_prominence"),
)
_EDGES = ("mean", "std", "skewness", "p90", "laplacian_std")

NAMES: tuple[str, ...] = (
    *(f"first_order_{name}" for name in _FIRST_ORDER),
    *(f"glcm{distance}_{name}" for distance in DISTANCES for name in _TEXTURE),
    *(f"gradient_{name}" for name in _EDGES),
    *(f"spectrum_{band}" for band in range(_BANDS)),
)
"""What each column of `radiomics` is."""

_CHUNK = 64
_TINY = 1e-12

_Plane = npt.NDArray[np.float64]


def radiomics(images: Images, *, what: str = "radiomics", progress: Progress = silent) -> Features:
    """(n, len(`NAMES`)) features of images of at least 8 x 8 pixels.

    * First order: moments and percentiles of the pixels; entropy (bits) and uniformity of their
      `LEVELS` grey levels.
    * Grey level co-occurrence (Haralick et al. 1973, doi 10.1109/TSMC.1973.4309314) at each of
      `DISTANCES` pixels: counts of four directions, made symmetric and added up.
    * Gradient: of its magnitude by central differences; and the Laplacian's standard deviation.
    * Spectrum: log10 of the share of the variance in each octave of spatial frequency, from the
      finest (0) to the coarsest; a share below 1e-6 counts as 1e-6.

    A flat image has skewness, kurtosis 0 and correlation 1, as in pyradiomics.

    Args:
        images: (n, 1, S, S) in [0, 1].
        what: What ``progress`` calls them.
        progress: Told after each 64 images.

    Raises:
        UsageError: The images are not (n, 1, S, S) in [0, 1].
    """
    check_images(images, what)
    rows: list[Features] = []
    for start in range(0, len(images), _CHUNK):
        planes = np.asarray(images[start : start + _CHUNK, 0], dtype=np.float64)
        levels = np.minimum((planes * LEVELS).astype(np.int64), LEVELS - 1)
        columns = [
            *_first_order(planes, levels),
            *(column for distance in DISTANCES for column in _texture(levels, distance)),
            *_edges(planes),
            *_spectrum(planes),
        ]
        rows.append(np.stack(columns, axis=1))
        progress(what, min(start + _CHUNK, len(images)), len(images))
    return np.concatenate(rows)


def _first_order(planes: _Plane, levels: npt.NDArray[np.int64]) -> list[_Plane]:
    pixels = planes.reshape(len(planes), -1)
    mean, std = pixels.mean(axis=1), pixels.std(axis=1)
    low, p10, quarter, middle, three_quarters, p90, high = np.percentile(
        pixels, (0, 10, 25, 50, 75, 90, 100), axis=1
    )
    inner = (pixels >= p10[:, None]) & (pixels <= p90[:, None])
    inner_count = inner.sum(axis=1)
    inner_mean = (pixels * inner).sum(axis=1) / inner_count
    robust = (np.abs(pixels - inner_mean[:, None]) * inner).sum(axis=1) / inner_count
    share = _counts(levels.reshape(len(levels), -1), LEVELS) / pixels.shape[1]
    return [
        *(mean, std, _moment(pixels, 3), _moment(pixels, 4)),
        *(low, p10, middle, p90, high, three_quarters - quarter),
        np.abs(pixels - mean[:, None]).mean(axis=1),
        robust,
        np.sqrt((pixels**2).mean(axis=1)),
        _entropy(share),
        (share**2).sum(axis=1),
    ]


def _moment(values: _Plane, order: int) -> _Plane:
    """(n,) standardised central moment of each row; 0 where the row is flat."""
    centred = values - values.mean(axis=1, keepdims=True)
    std = values.std(axis=1)
    moments = (centred**order).mean(axis=1)
    return np.divide(moments, std**order, out=np.zeros(len(values)), where=std > 1e-6)


def _counts(numbers: npt.NDArray[np.int64], kinds: int) -> _Plane:
    """(n, kinds), how often each number from 0 to kinds - 1 is in each row."""
    offset = kinds * np.arange(len(numbers))[:, None]
    found = np.bincount((numbers + offset).ravel(), minlength=kinds * len(numbers))
    return found.reshape(len(numbers), kinds).astype(np.float64)


def _entropy(shares: _Plane) -> _Plane:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=1)


def co_occurrence(levels: npt.NDArray[np.int64], distance: int) -> _Plane:
    """(n, L, L) shares of ordered pairs of grey levels of pixels ``distance`` apart.

    Args:
        levels: (n, S, S) from 0 to `LEVELS` - 1.
        distance: In pixels along rows, columns and both diagonals.
    """
    size, step = levels.shape[-1], distance
    pairs = (
        (levels[:, :, : size - step], levels[:, :, step:]),
        (levels[:, : size - step], levels[:, step:]),
        (levels[:, : size - step, : size - step], levels[:, step:, step:]),
        (levels[:, : size - step, step:], levels[:, step:, : size - step]),
    )
    both = [(first * LEVELS + second).reshape(len(levels), -1) for first, second in pairs]
    counts = _counts(np.concatenate(both, axis=1), LEVELS**2).reshape(-1, LEVELS, LEVELS)
    counts += counts.transpose(0, 2, 1)
    return counts / counts.sum(axis=(1, 2), keepdims=True)


def _texture(levels: npt.NDArray[np.int64], distance: int) -> list[_Plane]:
    share = co_occurrence(levels, distance)
    row, column = np.indices((LEVELS, LEVELS))
    apart = np.abs(row - column)

    def expected(of: npt.NDArray[np.number]) -> _Plane:
        return (share * of).sum(axis=(1, 2))

    mean = expected(row)
    variance = expected(row**2) - mean**2
    product = expected(row * column) - mean**2
    sums = row + column - 2 * mean[:, None, None]
    flat = variance < _TINY
    return [
        expected(apart**2),
        expected(apart),
        expected(1 / (1 + apart**2)),
        (share**2).sum(axis=(1, 2)),
        _entropy(share.reshape(len(share), -1)),
        np.divide(product, variance, out=np.ones(len(share)), where=~flat),
        expected(sums**3),
        expected(sums**4),
    ]


def _edges(planes: _Plane) -> list[_Plane]:
    down, right = np.gradient(planes, axis=(1, 2))
    size = np.hypot(down, right).reshape(len(planes), -1)
    inner = planes[:, 1:-1, 1:-1]
    around = planes[:, :-2, 1:-1] + planes[:, 2:, 1:-1] + planes[:, 1:-1, :-2] + planes[:, 1:-1, 2:]
    laplacian = (around - 4 * inner).reshape(len(planes), -1)
    return [
        size.mean(axis=1),
        size.std(axis=1),
        _moment(size, 3),
        np.percentile(size, 90, axis=1),
        laplacian.std(axis=1),
    ]


def _spectrum(planes: _Plane) -> list[_Plane]:
    size = planes.shape[-1]
    power = np.abs(np.fft.fft2(planes - planes.mean(axis=(1, 2), keepdims=True))) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"))
    total = power.sum(axis=(1, 2)) + _TINY
    # Cycles per pixel: above 1/4, then an octave each; the last takes all that is coarser.
    edges = [np.inf, *(0.25 / 2**band for band in range(_BANDS - 1)), 0.0]
    shares = [
        power[:, (radius > low) & (radius <= high)].sum(axis=1) / total
        for high, low in itertools.pairwise(edges)
    ]
    return [np.log10(np.maximum(share, 1e-6)) for share in shares]
