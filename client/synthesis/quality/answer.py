"""What may leave the site about memorisation: two noisy counts, and what follows from them.

**What one patient can change.** A patient is near if one of its images is scored below the public
``copy_below``, in any space. The score depends on the patient's own images and the synthetic ones
(`client.synthesis.quality.closeness`), not on other patients and on no threshold taken from them.
So one patient replaced by nothing changes one of the two counts, of training or of held-out
patients, by at most 1: together they are one Gaussian release with sensitivity 1. Counting
synthetic images near a training image would not do: one copied patient may be near all of them.

**What it costs.** `event` goes into the ledger of the training patients, *before* `answer` is
called, and into that of the held-out ones where they have one. Given the images it is one more
release on the same patients; it does not make good what the images themselves gave away.

The exact counts and `Memorisation.suspected` are functions of patients without noise: a yes or no
is not private because it is short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.stats

from client.synthesis.quality.memorisation import LEVEL, Space
from common.errors import UsageError
from common.privacy.events import GaussianRelease


class Noise(Protocol):
    """Standard normal numbers; at a hospital from the operating system's entropy."""

    def __call__(self, count: int, /) -> npt.NDArray[np.float64]:
        """``count`` of them, fresh ones at each call."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Public once its event is in the ledger: every field is noisy or was public before.

    Attributes:
        near_train: Training patients near a synthetic image, with noise; it may be negative.
        near_held_out: Held-out patients near one, with noise.
        num_train: Training patients.
        num_held_out: Held-out patients.
        noise_multiplier: Standard deviation of both noises.
    """

    near_train: float
    near_held_out: float
    num_train: int
    num_held_out: int
    noise_multiplier: float

    @property
    def excess(self) -> float:
        """The share of training patients near a synthetic image beyond that of held-out ones."""
        return self.near_train / self.num_train - self.near_held_out / self.num_held_out

    @property
    def standard_error(self) -> float:
        """Of `excess` where both shares are the same, from the noise and from drawing patients."""
        sizes = (self.num_train, self.num_held_out)
        share = (self.near_train + self.near_held_out) / sum(sizes)
        return _standard_error(self.noise_multiplier, sizes, share)

    @property
    def suspected(self) -> bool:
        """Whether `excess` is more than noise and chance explain, at a false alarm rate of 1 %."""
        return self.excess > float(scipy.stats.norm.isf(LEVEL)) * self.standard_error

    def to_dict(self) -> dict[str, object]:
        """For JSON; nothing in it but public numbers."""
        return {
            "near_train": self.near_train,
            "near_held_out": self.near_held_out,
            "num_train": self.num_train,
            "num_held_out": self.num_held_out,
            "noise_multiplier": self.noise_multiplier,
            "excess": self.excess,
            "standard_error": self.standard_error,
            "suspected": self.suspected,
        }


def detectable(noise_multiplier: float, *, num_train: int, num_held_out: int) -> float:
    """The share of training patients that must be copied to be found 9 times out of 10.

    From public numbers alone, so it can be read before anything is spent; held-out patients are
    taken to be near no image. Infinite where not even copies of all would be found.

    >>> round(detectable(5.0, num_train=578, num_held_out=212), 2)
    0.11
    """
    sizes = (num_train, num_held_out)

    def surplus(share: float) -> float:
        likely = share * num_train / sum(sizes)
        limit = scipy.stats.norm.isf(LEVEL) * _standard_error(noise_multiplier, sizes, likely)
        spread = math.hypot(
            math.sqrt(share * (1 - share) / num_train),
            *(noise_multiplier / size for size in sizes),
        )
        return float(share - limit - scipy.stats.norm.isf(0.1) * spread)

    if surplus(1.0) <= 0:
        return math.inf
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) <= 0 else (low, middle)
    return high


def _standard_error(noise_multiplier: float, sizes: tuple[int, int], share: float) -> float:
    """Of the difference of two noisy shares that are both ``share``."""
    likely = min(max(share, 1 / sum(sizes)), 0.5)
    return math.sqrt(
        sum((noise_multiplier / size) ** 2 + likely * (1 - likely) / size for size in sizes)
    )


def event(noise_multiplier: float) -> GaussianRelease:
    """What `answer` costs each patient, for the ledger."""
    return GaussianRelease(noise_multiplier=noise_multiplier, count=1)


def answer(spaces: Sequence[Space], *, noise_multiplier: float, noise: Noise) -> Answer:
    """Counts the patients that are near in any space, with noise. Reserve `event` first.

    Args:
        spaces: The same patients in the same order in each.
        noise_multiplier: Standard deviation of the noise; above 0.
        noise: Where it comes from.

    Raises:
        UsageError: The noise is not above 0, there is no space, or they are of other patients.
    """
    if not 0 < noise_multiplier < math.inf:
        raise UsageError(f"noise_multiplier={noise_multiplier}: must be a number above 0")
    sizes = {(one.train.size, one.held_out.size) for one in spaces}
    if len(sizes) != 1:
        raise UsageError(f"{len(spaces)} spaces of patients {sorted(sizes)}: must be of the same")
    near_train = np.any([one.train < one.copy_below for one in spaces], axis=0)
    near_held_out = np.any([one.held_out < one.copy_below for one in spaces], axis=0)
    first, second = noise(2)
    return Answer(
        near_train=float(near_train.sum() + noise_multiplier * first),
        near_held_out=float(near_held_out.sum() + noise_multiplier * second),
        num_train=near_train.size,
        num_held_out=near_held_out.size,
        noise_multiplier=noise_multiplier,
    )
