"""How fine, how wide and how noisy the whole numbers of a round are, from public numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import UsageError
from common.privacy.discrete import (
    BASE_STD,
    LEAST_SHARE_STD,
    MOST_SHARE_STD,
    max_norm_squared,
    noise_multiplier,
)
from common.secure_aggregation.terms import least_threshold

WRAP_CHANCE = 1e-9
_FINEST, _COARSEST = 20, 6  # exponents of two
MOST_CLIP = 1 << _FINEST
_MOST_LOSS = 1.005  # by rounding, of the sensitivity, where there is a choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Parties:
    """How many sites there are, and how many of them may fail (public).

    Attributes:
        num_sites: of the roster.
        max_dropouts: may be missing from a sum.
        max_colluders: may tell the server their noise and keys.
    """

    num_sites: int
    max_dropouts: int = 0
    max_colluders: int = 0

    def __post_init__(self) -> None:
        if min(self.max_dropouts, self.max_colluders) < 0:
            raise UsageError("secure aggregation: max_dropouts and max_colluders are at least 0")
        if self.threshold > self.num_sites - self.max_dropouts:
            raise UsageError(
                f"secure aggregation: of {self.num_sites} sites {self.max_dropouts} may be missing "
                f"(max_dropouts) and {self.max_colluders} collude (max_colluders), but "
                f"{self.threshold} sites must be there to take the masks off; lower one of them"
            )

    @property
    def threshold(self) -> int:
        """So many sites take the masks off."""
        return least_threshold(self.num_sites, self.max_colluders)

    @property
    def num_shares(self) -> int:
        """Shares of noise that are in every sum and that nobody but their sites knows."""
        return self.num_sites - self.max_dropouts - self.max_colluders


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanism:
    """The whole numbers of a round (all public).

    Attributes:
        clip: whole numbers in one clipping norm.
        share_std: deviation of one site's noise, in whole numbers.
        modulus_bits: 32 or 64.
        num_weights: entries of a vector.
        num_shares: shares of noise that every patient can count on.
    """

    clip: int
    share_std: int
    modulus_bits: int
    num_weights: int
    num_shares: int

    @property
    def noise_multiplier(self) -> float:
        """Of the Gaussian mechanism that costs no less, with all shares that can be counted on."""
        return self._multiplier(self.num_shares)

    @property
    def noise_multiplier_alone(self) -> float:
        """The same if the other sites' noise does not count: no trust in anybody."""
        return self._multiplier(1)

    def _multiplier(self, num_shares: int) -> float:
        return noise_multiplier(
            clip=self.clip,
            num_weights=self.num_weights,
            share_std=self.share_std,
            num_shares=num_shares,
        )


def design(
    *,
    noise_multiplier: float,
    num_weights: int,
    num_patients: int,
    sampling_rate: float,
    parties: Parties,
) -> Mechanism:
    """The finest whole numbers that fit, with the least noise that is enough.

    Guarantees: the mechanism's noise multiplier is at least the one asked for, whichever of the
    sites are missing or collude within the bounds of ``parties``; a sum leaves the ring with a
    chance below `WRAP_CHANCE` in a round.

    Args:
        noise_multiplier: deviation of the noise over the clipping norm, that the event is to have.
        num_weights: entries of a vector.
        num_patients: of all sites.
        sampling_rate: with which each of them joins.
        parties: who takes part.

    Raises:
        UsageError: if no such mechanism exists.
    """
    for bits in (32, 64):
        for exponent in range(_FINEST, _COARSEST - 1, -1):
            clip = 1 << exponent
            limit = max_norm_squared(clip, num_weights)
            variance = noise_multiplier**2 * limit * (1 + 1e-12) + BASE_STD**2
            share = max(LEAST_SHARE_STD, math.ceil(math.sqrt(variance / parties.num_shares)))
            drawn = most_drawn(num_patients, sampling_rate, WRAP_CHANCE / 2)
            reach = drawn * math.sqrt(limit) + _largest_noise(share, num_weights, parties.num_sites)
            fine = limit <= (_MOST_LOSS * clip) ** 2 or bits == 64
            if share <= MOST_SHARE_STD and reach < 2.0 ** (bits - 1) and fine:
                return Mechanism(
                    clip=clip,
                    share_std=share,
                    modulus_bits=bits,
                    num_weights=num_weights,
                    num_shares=parties.num_shares,
                )
    raise UsageError(
        f"secure aggregation: no modulus holds sums over {num_patients} patients with noise "
        f"multiplier {noise_multiplier:g} on {num_weights} weights"
    )


def most_drawn(num_patients: int, sampling_rate: float, chance: float) -> int:
    """So many patients join a step at most, but for a chance of ``chance`` (Chernoff).

    >>> most_drawn(1000, 0.1, 1e-9), most_drawn(1000, 1.0, 1e-9)
    (166, 1000)
    """
    low, high = math.ceil(num_patients * sampling_rate), num_patients
    while low < high:
        middle = (low + high) // 2
        if num_patients * _divergence((middle + 1) / num_patients, sampling_rate) >= -math.log(
            chance
        ):
            high = middle
        else:
            low = middle + 1
    return low


def _divergence(share: float, rate: float) -> float:
    """Of coins of chance ``share`` from coins of chance ``rate``, where it is the larger."""
    if share <= rate:
        return 0.0
    if share >= 1:
        return -math.log(rate)
    return share * math.log(share / rate) + (1 - share) * math.log((1 - share) / (1 - rate))


def _largest_noise(share_std: int, num_weights: int, num_sites: int) -> float:
    """No entry of all sites' noise passes this, but for half of `WRAP_CHANCE` (sub-Gaussian)."""
    return share_std * math.sqrt(2 * num_sites * math.log(4 * num_weights / WRAP_CHANCE))
