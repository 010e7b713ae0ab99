"""An attacker who learns from some runs how to guess, and is judged by others.

What is chosen by looking at scores (which score, which threshold, how many guesses) is chosen on
runs of its own, so that the bounds of `client.audit.bounds` hold for the rest as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from client.audit.bounds import TOLERANCE, Guesses, Rates, one_run, rules_out

Floats = NDArray[np.float64]

_THRESHOLDS = 200
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """Scores of canaries by name, (n,) each, and (n,) which of them were there."""

    scores: Mapping[str, Floats]
    present: NDArray[np.bool_]

    @classmethod
    def joined(cls, samples: Sequence[Sample]) -> Sample:
        """All canaries of ``samples``."""
        names = samples[0].scores
        return cls(
            scores={name: np.concatenate([one.scores[name] for one in samples]) for name in names},
            present=np.concatenate([one.present for one in samples]),
        )

    def divided(self) -> tuple[Sample, Sample]:
        """Of all pairs of one canary that is there and one that is not, a fourth, and the rest."""
        first = np.arange(len(self.present)) % 8 < 2
        return self._only(first), self._only(~first)

    def _only(self, chosen: NDArray[np.bool_]) -> Sample:
        scores = {name: values[chosen] for name, values in self.scores.items()}
        return Sample(scores=scores, present=self.present[chosen])


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Who is guessed to be there: whose score ``name`` is above ``threshold``."""

    name: str
    threshold: float

    def rates(self, sample: Sample, confidence: float) -> Rates:
        """How well it does on ``sample``."""
        guessed = sample.scores[self.name] > self.threshold
        there = int(sample.present.sum())
        return Rates.of(
            int((guessed & sample.present).sum()),
            there,
            int((guessed & ~sample.present).sum()),
            len(guessed) - there,
            confidence=confidence,
        )


Gain = Callable[[Floats, Floats], Floats]


def distance(true_positive: Floats, false_positive: Floats) -> Floats:
    """What a rule is worth for bounds that know a mechanism: see `Rates.mu`."""
    return special.ndtri(true_positive) - special.ndtri(false_positive)


def ratio(true_positive: Floats, false_positive: Floats) -> Floats:
    """What it is worth for the bound that knows none; delta is too small to matter here."""
    found = np.log(true_positive / false_positive)
    return np.maximum(found, np.log((1 - false_positive) / (1 - true_positive)))


def best_rule(sample: Sample, gain: Gain, confidence: float) -> Rule:
    """The rule that is worth most on ``sample``, with bounds of its rates in place of them."""
    there = int(sample.present.sum())
    absent = len(sample.present) - there
    error = (1 - confidence) / 2
    best, most = Rule(name=next(iter(sample.scores)), threshold=0.0), -np.inf
    for name, scores in sample.scores.items():
        thresholds = _thresholds(scores)
        guessed = scores[:, None] > thresholds
        found = (guessed & sample.present[:, None]).sum(0)
        mistaken = (guessed & ~sample.present[:, None]).sum(0)
        low = np.where(found > 0, stats.beta.ppf(error, found, there - found + 1), 1e-12)
        high = stats.beta.ppf(1 - error, mistaken + 1, np.maximum(absent - mistaken, 1e-9))
        worth = gain(low, np.clip(high, 1e-12, 1 - 1e-12))
        if np.max(worth) > most:
            index = int(np.argmax(worth))
            best, most = Rule(name=name, threshold=float(thresholds[index])), worth[index]
    return best


def _thresholds(scores: Floats) -> Floats:
    """Between scores, so that equal ones are on one side, whatever rounding adds to them."""
    values = np.unique(scores)
    if len(values) > _THRESHOLDS:
        values = np.unique(np.quantile(values, np.linspace(0, 1, _THRESHOLDS)))
    return (values[:-1] + values[1:]) / 2 if len(values) > 1 else values


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Who is guessed at all: a share with the highest scores ``name``, one with the lowest."""

    name: str
    highest: float
    lowest: float

    def guesses(self, sample: Sample) -> Guesses:
        """What is said of ``sample``: that the highest are there, and the lowest are not."""
        order = np.argsort(sample.scores[self.name], kind="stable")
        total = len(order)
        top = order[total - round(self.highest * total) :]
        bottom = order[: round(self.lowest * total)]
        right = int(sample.present[top].sum() + (~sample.present[bottom]).sum())
        return Guesses(num_canaries=total, made=len(top) + len(bottom), right=right)


def best_ranking(sample: Sample, delta: float, confidence: float) -> Ranking:
    """The ranking whose guesses prove most on ``sample``."""
    choices = [
        Ranking(name=name, highest=highest, lowest=lowest)
        for name, highest, lowest in product(sample.scores, _SHARES, _SHARES)
        if highest + lowest > 0
    ]
    best, most = choices[0], 0.0
    for one in choices:
        guesses = one.guesses(sample)
        # a bound is dear to compute; whether it is above another is not
        if rules_out(guesses, most + TOLERANCE, delta, confidence=confidence):
            best, most = one, one_run(guesses, delta, confidence=confidence)
    return best


def one_run_of(ranking: Ranking, sample: Sample, delta: float, confidence: float) -> float:
    """What the guesses of ``ranking`` prove on ``sample``."""
    return one_run(ranking.guesses(sample), delta, confidence=confidence)
