"""Whether a cohort is large enough for the epsilon that is asked for.

The rule. A step of DP-SGD adds to the mean of clipped gradients a noise vector of expected length
about ``sigma C sqrt(d) / (q N)`` (sigma the noise multiplier, C the clipping norm, d the number of
trained weights, q the sampling rate, N the number of patients), where that mean is at most C long.
Over T steps signal adds up and independent noise partly cancels, which leaves::

    noise to signal >= sigma sqrt(d) / (q N sqrt(T))

It bounds the ratio from below (gradients are rarely all C long in one direction), so it can say
"too small" and never "large enough". K sites of N / K patients each, whose updates are averaged
with the noise of each, have sqrt(K) times the ratio of one site with all N.

Measured on CBIS-DDSM masses, five sites of 115 patients at epsilon 8 (README): a ratio of 7.0 (all
5.4 million weights of ViT-Tiny) ended at an AUROC of 0.53, chance; 0.08 (the 770 weights of a head
on public features) at 0.61.

See also Ponomareva et al., "How to DP-fy ML", 2023, https://arxiv.org/abs/2303.00654, who weigh
noise against batch size, and Tramer and Boneh, "Differentially Private Learning Needs Better
Features (or Much More Data)", 2021, https://arxiv.org/abs/2011.11660, for why few weights on public
features do better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from client.data.check.finding import Finding, Severity

NOISY = 1.0
"""Noise as long as the largest possible signal."""

HOPELESS = 5.0
"""Noise five times as long: expect a model near chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseToSignal:
    """A recipe on a number of patients; public, but for what it says of this study.

    Attributes:
        who: Which cohort, in words.
        num_patients: N, over all its sites.
        num_sites: Sites of equal size whose updates are averaged, each with noise of its own.
        num_weights: d, weights that are trained.
        sampling_rate: q.
        steps: T, over all rounds.
        noise_multiplier: sigma.
    """

    who: str
    num_patients: int
    num_sites: int = 1
    num_weights: int
    sampling_rate: float
    steps: int
    noise_multiplier: float

    @property
    def ratio(self) -> float:
        """Length of the noise over that of the largest possible signal.

        >>> NoiseToSignal(who="a site", num_patients=115, num_weights=5_400_000,
        ...               sampling_rate=0.25, steps=40, noise_multiplier=1.235).ratio
        15.78...
        """
        patients = self.sampling_rate * self.num_patients
        noise = self.noise_multiplier * math.sqrt(self.num_weights * self.num_sites)
        return noise / (patients * math.sqrt(self.steps))

    @property
    def patients_needed(self) -> int:
        """Patients, over all sites, for which the ratio would be 1 with the same recipe."""
        return math.ceil(self.num_patients * self.ratio / NOISY)

    @property
    def verdict(self) -> str:
        """The ratio in words."""
        if self.ratio > HOPELESS:
            return "noise dominates, expect a model near chance"
        return "noisy, expect a loss of utility" if self.ratio > NOISY else "not ruled out"


def too_small(cohort: NoiseToSignal) -> list[Finding]:
    """A warning where noise is longer than the largest possible signal."""
    if cohort.ratio <= NOISY:
        return []
    return [
        Finding(
            code="too_small_for_epsilon",
            severity=Severity.warning,
            text=f"Noise is at least {cohort.ratio:.3g} times as long as the signal for "
            f"{cohort.who} ({cohort.num_patients:,} training patients): {cohort.verdict}.",
            remedy=f"Train fewer weights on public ones (finetune=head), take part with other "
            f"hospitals, or raise epsilon; {cohort.patients_needed:,} patients would bring the "
            "ratio to 1.",
        )
    ]
