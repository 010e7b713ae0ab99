"""How near the synthetic images come to an image.

The score of a real image is its distance to the nearest synthetic image divided by its median
distance to all of them: 0 for a copy, towards 1 where no synthetic image is nearer than others.
It depends on that image and on the synthetic images only, on no other patient: that is what a
count of near patients owes its sensitivity of 1 to (`client.synthesis.quality.answer`).

*Features* see what an image shows; principal components of the synthetic images make their
directions count alike. *Pixels* see copies: images are reduced to 32 x 32, the best of
four flips and of shifts by up to 2 of these pixels counts, and brightness and contrast do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.image import resize
from client.synthesis.quality.images import Features, Images
from client.synthesis.quality.neighbours import distances
from client.synthesis.quality.progress import Progress, silent

FEWEST = 10
"""Synthetic images that a median needs."""

_SIDE = 32
_SHIFT = 2
_AT_ONCE = 8
_COMPONENTS = 64
_FLAT = 0.01  # standard deviation below which an image counts as flat, and is compared as one

_Values = npt.NDArray[np.float64]
_Blocks = Iterator[tuple[slice, _Values]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Closeness:
    """Distances between synthetic and real images in one space; derived from patients.

    Attributes:
        train: (n,) score of each training image.
        held_out: (h,) score of each held-out image.
        synthetic_to_train: (m,) distance of each synthetic image to the nearest training image.
        held_out_to_train: (h,) the same of each held-out image.
    """

    train: _Values = field(repr=False)
    held_out: _Values = field(repr=False)
    synthetic_to_train: _Values = field(repr=False)
    held_out_to_train: _Values = field(repr=False)


def in_features(train: Features, held_out: Features, synthetic: Features) -> Closeness:
    """Closeness of (n, d), (h, d) and (m, d) features."""
    centre, whiten = _whitening(synthetic)
    points = [_directions((rows - centre) @ whiten) for rows in (train, held_out, synthetic)]
    return _measured(
        distances(points[0], np.concatenate([points[2], points[1]])),
        distances(points[1], points[2]),
        (len(train), len(held_out), len(synthetic)),
    )


def in_pixels(
    train: Images, held_out: Images, synthetic: Images, *, progress: Progress = silent
) -> Closeness:
    """Closeness of (n, 1, S, S), (h, 1, S, S) and (m, 1, S, S) images in [0, 1]."""
    made = _targets(synthetic)
    total = len(train) + len(held_out)

    def told(blocks: _Blocks, before: int) -> _Blocks:
        for rows, block in blocks:
            yield rows, block
            progress("pixels compared", before + rows.stop, total)

    return _measured(
        told(pixel_distances(train, np.concatenate([made, _targets(held_out)])), 0),
        told(pixel_distances(held_out, made), len(train)),
        (len(train), len(held_out), len(synthetic)),
    )


def _measured(
    from_train: _Blocks, from_held_out: _Blocks, sizes: tuple[int, int, int]
) -> Closeness:
    """From distances of training images to (synthetic, held-out) ones, and of held-out ones."""
    num_train, num_held_out, num_synthetic = sizes
    train, held_out = np.empty(num_train), np.empty(num_held_out)
    nearest = np.full(num_synthetic + num_held_out, np.inf)
    for rows, block in from_train:
        train[rows] = _relative(block[:, :num_synthetic])
        np.minimum(nearest, block.min(axis=0), out=nearest)
    for rows, block in from_held_out:
        held_out[rows] = _relative(block)
    return Closeness(
        train=train,
        held_out=held_out,
        synthetic_to_train=nearest[:num_synthetic],
        held_out_to_train=nearest[num_synthetic:],
    )


def pixel_distances(images: Images, targets: Images) -> _Blocks:
    """Distances sqrt(2 - 2 correlation), from 0 to 2, of the best flip and shift of ``images``.

    Args:
        images: (n, 1, S, S).
        targets: (m, D), see `_targets`.

    Yields:
        Which images, and (block, m) their distances to every target.
    """
    for start in range(0, len(images), _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, len(images)))
        variants = _variants(_reduced(images[rows]))
        alike = variants.reshape(-1, variants.shape[-1]) @ targets.T
        best = alike.reshape(*variants.shape[:2], -1).max(axis=1).astype(np.float64)
        yield rows, np.sqrt(np.maximum(2.0 - 2.0 * best, 0.0))


def _targets(images: Images) -> Images:
    """(m, D) the middle of each image, standardised."""
    middle = slice(_SHIFT, -_SHIFT)
    return _standardised(_reduced(images)[:, middle, middle])


def of_patients(scores: _Values, patients: npt.NDArray[np.int64], num_patients: int) -> _Values:
    """(P,) the lowest score of each patient's images; infinite for one without images.

    >>> of_patients(np.array([0.5, 0.2, 0.4]), np.array([0, 0, 1]), 2).tolist()
    [0.2, 0.4]
    """
    found = np.full(num_patients, np.inf)
    np.minimum.at(found, patients, scores)
    return found


def _whitening(synthetic: Features) -> tuple[Features, Features]:
    """The mean (d,) and a (d, k) map onto principal components of variance 1.

    Of the raw features of a transformer two directions hold three quarters of the variance, and
    images that differ in every detail come out near each other.
    """
    centre = synthetic.mean(axis=0)
    _, lengths, directions = np.linalg.svd(synthetic - centre, full_matrices=False)
    most = max(1, min(_COMPONENTS, len(synthetic) // 8))
    kept = lengths[:most] > 1e-6 * max(lengths[0], 1e-12)
    kept[0] = True
    scale = np.maximum(lengths[:most][kept], 1e-12) / np.sqrt(len(synthetic))
    return centre, directions[:most][kept].T / scale


def _directions(points: Features) -> Features:
    """Each row at length 1."""
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def _relative(block: _Values) -> _Values:
    nearest, middle = block.min(axis=1), np.median(block, axis=1)
    return np.divide(nearest, middle, out=np.zeros(len(block)), where=middle > 0)


def _reduced(images: Images) -> Images:
    """(n, 32, 32), by area."""
    return np.stack([resize(np.asarray(image[0], np.float32), _SIDE) for image in images])


def _standardised(planes: Images) -> Images:
    """(n, D) of mean 0 and length 1; a flat image is nearly zero and so alike to none."""
    rows = planes.reshape(len(planes), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(length, _FLAT * np.sqrt(rows.shape[1]))


def _variants(planes: Images) -> Images:
    """(n, V, D) of every flip and shift, standardised."""
    inner = _SIDE - 2 * _SHIFT
    flips = (planes, planes[:, ::-1], planes[:, :, ::-1], planes[:, ::-1, ::-1])
    found = [
        _standardised(flipped[:, down : down + inner, right : right + inner])
        for flipped in flips
        for down in range(2 * _SHIFT + 1)
        for right in range(2 * _SHIFT + 1)
    ]
    return np.stack(found, axis=1)
