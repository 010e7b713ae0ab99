"""Membership inference: how much more a model seems to know an image than it should.

Three attacks, from what a model says of images alone. Each gives one number for each image, large
if it was trained on; a patient's number is the mean over the patient's images. Private: all of it
is derived from patients and stays at the site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_OFFLINE = 0.3  # a of RMIA: how much likelier than 1 - a an image is where it was trained on
_ENOUGH = 32  # of references without an image, to measure how much they differ on that image
_LEAST_LOSS, _MOST_LOSS = 1e-12, 700.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """What models say of N images (private).

    Attributes:
        losses: (N,) of the model under audit, for the true label.
        references: (K, N) of K models that were trained as it was, on other draws of patients.
        absent: (K, N), whether a reference was trained without the image's patient; each image has
            at least one such reference, if there are any.
    """

    losses: Floats = field(repr=False)
    references: Floats = field(repr=False)
    absent: NDArray[np.bool_] = field(repr=False)

    def __post_init__(self) -> None:
        num_images = len(self.losses)
        if self.references.shape != self.absent.shape or self.absent.shape[1:] != (num_images,):
            raise ValueError("references, absent: must be of shape (K, N), losses of (N,)")
        if len(self.absent) and not self.absent.any(0).all():
            raise ValueError("absent: each image needs a reference that was trained without it")
        if not (np.isfinite(self.losses).all() and np.isfinite(self.references).all()):
            raise ValueError("losses: not finite; the model may have diverged")

    def without(self, values: Floats) -> Floats:
        """(N,) mean of ``values`` (K, N) over the references that never saw an image's patient."""
        return np.where(self.absent, values, 0.0).sum(0) / self.absent.sum(0)


Attack = Callable[[Answers], Floats]


def loss_threshold(answers: Answers) -> Floats:
    """(N,) minus the loss: who has a small one was trained on.

    Yeom, Giacomelli, Fredrikson, Jha 2018, "Privacy Risk in Machine Learning", arXiv 1709.01604.
    """
    return -answers.losses


def rmia(answers: Answers) -> Floats:
    """(N,) log of how much likelier the model holds an image's label than other models do.

    The ratio of the offline attack of Zarifzadeh, Liu, Shokri 2024, "Low-Cost High-Power Membership
    Inference Attacks", arXiv 2312.03262, with their correction for references that were never
    trained on the image. The comparison with other people's images that follows there rises with
    this ratio, so for one model it changes no image's rank, and is left out.
    """
    elsewhere = answers.without(np.exp(-answers.references))
    return -answers.losses - np.log(((1 + _OFFLINE) * elsewhere + (1 - _OFFLINE)) / 2)


def lira(answers: Answers) -> Floats:
    """(N,) how far the logit of the label's probability is above where other models have it.

    The offline attack of Carlini et al. 2022, "Membership Inference Attacks From First Principles",
    arXiv 2112.03570: in standard deviations of the image's own references where it has 32, else of
    all (as they do where references are few).
    """
    logits = _logit(answers.references)
    centre = answers.without(logits)
    spread = answers.without(np.square(logits - centre))
    if answers.absent.sum(0).min() < _ENOUGH:
        spread = np.full_like(spread, spread.mean())
    return (_logit(answers.losses) - centre) / np.sqrt(np.maximum(spread, 1e-12))


def _logit(losses: Floats) -> Floats:
    """log(p / (1 - p)) of p = exp(-loss)."""
    bounded = np.clip(losses, _LEAST_LOSS, _MOST_LOSS)
    return -bounded - np.log(-np.expm1(-bounded))


def attacks(answers: Answers) -> Mapping[str, Floats]:
    """(N,) of every attack that can be made, by name: two need references."""
    found = {"loss": loss_threshold(answers)}
    if len(answers.references):
        found |= {"RMIA": rmia(answers), "LiRA": lira(answers)}
    return found


def by_patient(scores: Floats, patients: NDArray[np.int64], num_patients: int) -> Floats:
    """(P,) mean of ``scores`` (N,) over each patient's images.

    >>> by_patient(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), 2).tolist()
    [2.0, 5.0]

    Raises:
        ValueError: if a patient has no image.
    """
    counts = np.bincount(patients, minlength=num_patients)
    if len(counts) != num_patients or not counts.all():
        raise ValueError(f"patients: each of the {num_patients} needs an image")
    return np.bincount(patients, weights=scores, minlength=num_patients) / counts
