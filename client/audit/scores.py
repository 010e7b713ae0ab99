"""What an attacker makes of what was released: one number for each canary, large if it was there.

The first score is the best one against the mechanism as it is claimed. The others are for faults
that it does not foresee; against a sound mechanism they tell less than the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from client.audit.game import Play

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """The mechanism as it is claimed (public).

    Attributes:
        sampling_rate: q.
        noise_multiplier: sigma.
        opposed: whether the cohort holds the first canary's opponent.
    """

    sampling_rate: float
    noise_multiplier: float
    opposed: bool = False


def likelihood(seen: Floats, claimed: Claimed) -> Floats:
    """(K,) log-likelihood ratio of all steps (K, R, S): the best test, by Neyman and Pearson.

    A step shows N(0, sigma^2) without the canary, and with it N(1, sigma^2) at a rate of q.
    """
    rate, density = claimed.sampling_rate, _opposed if claimed.opposed else _normal
    absent, drawn = density(seen, claimed), density(seen - 1.0, claimed)
    if rate == 1.0:
        return (drawn - absent).sum((1, 2))
    present = np.logaddexp(math.log1p(-rate) + absent, math.log(rate) + drawn)
    return (present - absent).sum((1, 2))


def _normal(x: Floats, claimed: Claimed) -> Floats:
    """Log density of noise alone, but for a constant."""
    return -0.5 * np.square(x / claimed.noise_multiplier)


def _opposed(x: Floats, claimed: Claimed) -> Floats:
    """The same where the opponent is drawn at the same rate as everybody."""
    rate = claimed.sampling_rate
    if rate == 1.0:
        return _normal(x + 1.0, claimed)
    return np.logaddexp(
        math.log1p(-rate) + _normal(x, claimed), math.log(rate) + _normal(x + 1.0, claimed)
    )


def spread(seen: Floats) -> Floats:
    """(K,) how much a step differs from round to round: where noise returns, by canaries alone."""
    return seen.var(1).sum(1)


def orderly(seen: Floats, period: int, claimed: Claimed) -> Floats:
    """(K,) likelihood of a canary that comes at every ``period``-th step, from whichever on."""
    steps = seen.reshape(len(seen), -1)
    gain = (steps - 0.5) / claimed.noise_multiplier**2
    phases = np.stack([gain[:, phase::period].sum(1) for phase in range(period)], 1)
    found = np.asarray(logsumexp(phases, axis=1), dtype=np.float64)
    return found - math.log(period)


def differing(seen: Floats, elsewhere: Floats) -> Floats:
    """(K,) sum of what one site released over what another did: noise that both add cancels."""
    return (seen - elsewhere).sum((1, 2))


def of_play(one: Play, claimed: Claimed) -> Mapping[str, Floats]:
    """All scores of the canaries of one run, by name."""
    found = of_seen(one.seen, claimed)
    return {**found, "other site": differing(one.seen, one.elsewhere)}


def of_seen(seen: Floats, claimed: Claimed) -> Mapping[str, Floats]:
    """The scores that need one site only."""
    _, rounds, steps = seen.shape
    scores: dict[str, Floats] = {"likelihood": likelihood(seen, claimed)}
    if rounds > 1:
        scores["spread over rounds"] = spread(seen)
    for period in sorted({round(1 / claimed.sampling_rate), steps}):
        if 1 < period <= rounds * steps // 2:
            scores[f"order of {period}"] = orderly(seen, period, claimed)
    return scores
