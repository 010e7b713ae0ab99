"""Privacy of a whole hospital: updates bounded at the server, noise for the largest weight."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from common.config import SiteDpConfig
from common.messages import Weights
from common.noise import Noise
from common.privacy.events import PoissonGaussianSteps
from common.seeds import SeedSource


class SiteNoise:
    """Replaces the sites' models by one noisy mean; what a strategy makes of it is post-processing.

    Neighbouring runs differ in one site's update of every round being replaced by nothing. Who
    responded and what each site weighs is public. With updates clipped to C and weights w_i, the
    mean over the responders changes by at most C max(w) / sum(w); the noise is
    ``noise_multiplier`` times that, so that each round costs the same whoever responded. (Noise of
    C over the number of sites, as in Flower's wrappers, is too little for unequal or missing
    ones.)

    Guarantees:
        A round is one Gaussian mechanism of ``noise_multiplier`` for every site. Without seeds
        the noise is cryptographic; see `common.noise`.
    """

    def __init__(self, config: SiteDpConfig, seeds: SeedSource) -> None:
        if config.noise_multiplier is None:
            raise ValueError("noise_multiplier is not set")
        self._noise_multiplier = config.noise_multiplier
        self._clip_norm = config.clip_norm
        self._seeds = seeds

    def mean(
        self, round_number: int, current: Weights, shares: Mapping[str, tuple[Weights, int]]
    ) -> Weights:
        """``current`` plus the noisy mean of clipped updates.

        Args:
            round_number: from 1; names the noise.
            current: the model that the round began with.
            shares: weights and weight in the mean, by site name.
        """
        total = sum(weight for _, weight in shares.values())
        std = self.std([weight for _, weight in shares.values()])
        noise = Noise(self._seeds.seed(round_number, "site_dp"))
        moved = {name: np.zeros(value.shape) for name, value in current.items()}
        for site in sorted(shares):
            weights, weight = shares[site]
            update = {n: weights[n].astype(np.float64) - v for n, v in current.items()}
            norm = math.sqrt(sum(float(np.sum(change**2)) for change in update.values()))
            factor = min(1.0, self._clip_norm / norm) if norm else 1.0
            for name, change in update.items():
                moved[name] += change * (factor * weight / total)
        return {
            name: noise.added_to(current[name] + moved[name], std).astype(np.float32)
            for name in sorted(current)
        }

    def std(self, weights: list[int]) -> float:
        """Standard deviation of the noise in a mean of these weights."""
        return self._noise_multiplier * self._clip_norm * max(weights) / sum(weights)


def event(config: SiteDpConfig, rounds: int) -> PoissonGaussianSteps | None:
    """What so many rounds cost a site; nothing to say if there is no noise or no round."""
    if config.noise_multiplier is None or not rounds:
        return None
    return PoissonGaussianSteps(
        sampling_rate=1.0, noise_multiplier=config.noise_multiplier, steps=rounds
    )
