"""Did the generator keep training patients? A test against patients that it never saw.

Nothing of this may leave a site: every figure is an exact function of patients, `suspected` too.
What may leave is in `client.synthesis.quality.answer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy.stats

from client.data.cohort import Cohort
from client.synthesis.quality.closeness import Closeness, of_patients
from common.errors import UsageError

LEVEL = 0.01
"""Chance of a false alarm over all tests of `memorisation`, where the images keep nobody."""

_TAIL = 0.01
_FEWEST_PATIENTS = 2

_Values = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """One way of comparing images, and what it says; all but two names derived from patients.

    Attributes:
        name: What it is called, such as ``"features"``.
        copy_below: The score (`client.synthesis.quality.closeness`) below which an image counts
            as copied: public, and the same for every study.
        train: (N,) the score of each training patient: of its nearest image.
        held_out: (M,) the score of each patient that the generator never saw.
        synthetic_to_train: Distance of each synthetic image to the nearest training image.
        held_out_to_train: (M,) the same of one image of each held-out patient.
    """

    name: str
    copy_below: float
    train: _Values = field(repr=False)
    held_out: _Values = field(repr=False)
    synthetic_to_train: _Values = field(repr=False)
    held_out_to_train: _Values = field(repr=False)

    def __post_init__(self) -> None:
        sizes = (self.train.size, self.held_out.size)
        if min(sizes) < _FEWEST_PATIENTS:
            raise UsageError(
                f"{sizes[0]} training and {sizes[1]} held-out patients: at least "
                f"{_FEWEST_PATIENTS} of each are needed"
            )

    @classmethod
    def of(
        cls, name: str, closeness: Closeness, train: Cohort, held_out: Cohort, *, copy_below: float
    ) -> Space:
        """From what was measured of images to what is known of patients."""
        _, first = np.unique(held_out.patients, return_index=True)
        return cls(
            name=name,
            copy_below=copy_below,
            train=of_patients(closeness.train, train.patients, train.num_patients),
            held_out=of_patients(closeness.held_out, held_out.patients, held_out.num_patients),
            synthetic_to_train=closeness.synthetic_to_train,
            held_out_to_train=closeness.held_out_to_train[first],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Training patients against held-out ones in one space; derived from patients.

    Attributes:
        space: Which.
        copied_train: Training patients of whom an image was copied.
        copied_held_out: Held-out patients of whom one seems to be: chance.
        copied_p: How probable so many more among training patients are by chance.
        attack_auroc: How well the score tells training patients from others: the success of a
            membership attack by who has the synthetic images and a patient's; 0.5 is guessing.
        attack_p: How probable this much is by chance.
        near_train: Training patients whose score is below the lowest percentile of held-out ones.
        near_expected: How many are to be expected where nobody was kept.
        near_p: How probable so many are by chance.
        near_images: The share of synthetic images that are nearer to a training image than the
            lowest percentile of held-out images are.
        near_images_bound: What that share stays below, 19 times out of 20, for images like those
            of new patients. No test of `suspected`: images smoother than real ones are nearer to
            everything, and bad ones farther, whoever was kept.
    """

    space: str
    copied_train: int
    copied_held_out: int
    copied_p: float
    attack_auroc: float
    attack_p: float
    near_train: int
    near_expected: float
    near_p: float
    near_images: float
    near_images_bound: float

    @property
    def lowest_p(self) -> float:
        """Of its three tests."""
        return min(self.copied_p, self.attack_p, self.near_p)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memorisation:
    """What `memorisation` found; derived from patients, stays at the site.

    Attributes:
        spaces: One comparison each.
        num_train: Training patients.
        num_held_out: Held-out patients.
        p: The lowest probability of all tests, times their number (Bonferroni), at most 1.
    """

    spaces: tuple[Comparison, ...]
    num_train: int
    num_held_out: int
    p: float

    @property
    def copied(self) -> int:
        """Training patients seemingly copied, in the space where they are most."""
        return max(one.copied_train for one in self.spaces)

    @property
    def suspected(self) -> bool:
        """Whether a test says so, or copies are there among training patients only.

        The second is no test: with few held-out patients none could tell three copies from
        chance, but a picture that is equal up to a shift is not made by chance.
        """
        only = any(one.copied_train > 0 and one.copied_held_out == 0 for one in self.spaces)
        return self.p < LEVEL or only


def memorisation(spaces: Sequence[Space]) -> Memorisation:
    """Compares training with held-out patients in every space.

    *What is tested*: if the images were made without looking at which patients are the training
    ones, and these were drawn at random from all, then scores of both come from one distribution.
    That holds however good or bad the images are. A patient counts once, with its nearest image.

    * Ranks of all scores (Mann-Whitney; sensitive where every patient was learnt a little).
    * Number of training patients below the k-th lowest held-out score, k the whole part of
      (M + 1)/100, at least 1 (negative hypergeometric; sensitive where a few were kept).
    * Number of scores below ``copy_below`` (Fisher's exact test).

    *What a pass does not mean*: no epsilon follows from it. Whoever was kept in a way that these
    distances do not see is not found, and with few held-out patients only coarse copying is: of M
    held-out patients none shows less than about 3 in M.

    Raises:
        UsageError: There is no space, or they are not about the same patients.
    """
    sizes = {(one.train.size, one.held_out.size) for one in spaces}
    if len(sizes) != 1:
        raise UsageError(f"{len(spaces)} spaces of patients {sorted(sizes)}: must be of the same")
    ((num_train, num_held_out),) = sizes
    found = tuple(_compared(one) for one in spaces)
    lowest = min(one.lowest_p for one in found)
    return Memorisation(
        spaces=found,
        num_train=num_train,
        num_held_out=num_held_out,
        p=min(1.0, 3 * len(found) * lowest),
    )


def _compared(one: Space) -> Comparison:
    num_train, num_held_out = one.train.size, one.held_out.size
    copied = [int((scores < one.copy_below).sum()) for scores in (one.train, one.held_out)]
    ranks = scipy.stats.mannwhitneyu(one.train, one.held_out, alternative="less")
    k = max(1, int(_TAIL * (num_held_out + 1)))
    limit = np.sort(one.held_out_to_train)[k - 1]
    num_images = one.synthetic_to_train.size
    by_chance = scipy.stats.betabinom(num_images, k, num_held_out - k + 1)
    near = int((one.train < np.sort(one.held_out)[k - 1]).sum())
    everyone = num_train + num_held_out
    return Comparison(
        space=one.name,
        copied_train=copied[0],
        copied_held_out=copied[1],
        copied_p=float(scipy.stats.hypergeom.sf(copied[0] - 1, everyone, num_train, sum(copied))),
        attack_auroc=float(1 - ranks.statistic / (num_train * num_held_out)),
        attack_p=float(ranks.pvalue),
        near_train=near,
        near_expected=k * num_train / (num_held_out + 1),
        near_p=float(scipy.stats.nhypergeom.sf(near - 1, everyone, num_train, k)),
        near_images=float((one.synthetic_to_train < limit).mean()),
        near_images_bound=float(by_chance.ppf(0.95) / num_images),
    )
