"""The audit of a recipe: two games, four bounds, one figure beside the claim."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from client.audit import scores
from client.audit.attack import Rule, Sample, best_ranking, best_rule, distance, one_run_of, ratio
from client.audit.bounds import from_rates, gaussian, sampled_gaussian
from client.audit.game import Play, Subject, Table, play
from client.audit.scores import Claimed
from client.audit.system import System
from common.seeds import derive_seed

# From here on the opponent of a lone canary is there often enough to turn a sum around.
_OPPOSED_FROM = 0.5
_NUM_BOUNDS = 4
_LEARNT = 0.25  # of all runs, those that teach the attacker
_INDEPENDENT = "canaries of a run do not disturb each other"
_SAMPLED = "Poisson-sampled Gaussian steps, of unknown noise"

# Takes a stage, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is tried.

    Attributes:
        num_canaries: in each run of the first game.
        num_ordinary: other patients in it.
        num_runs: of the first game; a fourth of them teaches the attacker, the others count.
        num_lone_runs: of the second game, each with one canary or none; divided as well.
    """

    num_canaries: int = 1000
    num_ordinary: int = 32
    num_runs: int = 4
    num_lone_runs: int = 400

    def __post_init__(self) -> None:
        least = {"num_canaries": 20, "num_ordinary": 1, "num_runs": 2, "num_lone_runs": 8}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {bound}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One lower bound of epsilon, and what it rests on.

    Attributes:
        name: of the method.
        epsilon: the bound.
        assumes: beyond that the coins were fair and the runs independent.
        score: what the attacker looked at.
        mu: where the method has rates: distance of two normal distributions told apart as well.
        epsilon_gaussian: what the bound of Nasr et al. makes of ``mu``; for comparison only, where
            patients are sampled.
    """

    name: str
    epsilon: float
    assumes: str
    score: str
    mu: float | None = None
    epsilon_gaussian: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What an audit found (public: no patient is in it).

    Attributes:
        claim: the site's own spend statement.
        bounds: one by one; together they hold with ``confidence``.
        confidence: of the largest of them.
    """

    claim: dict[str, Any]
    bounds: tuple[Bound, ...]
    confidence: float

    @property
    def epsilon_claimed(self) -> float:
        """By the site's ledger; infinite where nothing is promised."""
        epsilon = cast("float | None", self.claim["epsilon"])
        return math.inf if epsilon is None else epsilon

    @property
    def epsilon_lower_bound(self) -> float:
        """The largest bound."""
        return max(bound.epsilon for bound in self.bounds)

    @property
    def passes_claim(self) -> bool:
        """Whether the lower bound is above the claim: the claim is wrong."""
        return self.epsilon_lower_bound > self.epsilon_claimed


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """What an attacker has seen, and of whom, in two games.

    Attributes:
        subject: whose training it was.
        claim: the site's spend statement.
        crowded: canaries of the first game: those that teach the attacker, and the others.
        lone: those of the second, as well.
    """

    subject: Subject
    claim: dict[str, Any]
    crowded: tuple[Sample, Sample]
    lone: tuple[Sample, Sample]


def audit(
    subject: Subject,
    *,
    effort: Effort,
    seed: int,
    system: System | None = None,
    confidence: float = 0.95,
    progress: Progress = lambda *_: None,
) -> Audit:
    """Attack the training of ``subject`` and compare what is proved with what its ledger says.

    See `gather` and `conclude`.
    """
    evidence = gather(subject, effort=effort, seed=seed, system=system, progress=progress)
    return conclude(evidence, confidence=confidence)


def gather(
    subject: Subject,
    *,
    effort: Effort,
    seed: int,
    system: System | None = None,
    progress: Progress = lambda *_: None,
) -> Evidence:
    """Play two games.

    In the first, each run has many canaries and the whole site trains: model, ledger, rounds. In
    the second, each run has one canary or none, and no model, so that it can be repeated often.

    Raises:
        UsageError: if private training does not cover the model.
        RunFailed: if the site does not train.
    """
    system = system or System()
    claimed = _claimed(subject)
    plays = _crowded(subject, system, effort, seed, progress)
    samples = [Sample(scores=scores.of_play(one, claimed), present=one.present) for one in plays]
    few = max(1, round(_LEARNT * len(samples)))
    return Evidence(
        subject=subject,
        claim=plays[0].claim,
        crowded=(Sample.joined(samples[:few]), Sample.joined(samples[few:])),
        lone=_lone(subject, system, effort, seed, progress).divided(),
    )


def conclude(evidence: Evidence, *, confidence: float) -> Audit:
    """Four bounds, each with a fourth of the error, so that the largest has ``confidence``."""
    each = 1 - (1 - confidence) / _NUM_BOUNDS
    bounds = (
        _one_run(evidence, each),
        _trade_off("many canaries", evidence.subject, evidence.crowded, each, _INDEPENDENT),
        _rates_alone(evidence, each),
        _trade_off("lone canaries", evidence.subject, evidence.lone, each, ""),
    )
    return Audit(claim=evidence.claim, bounds=bounds, confidence=confidence)


def _claimed(subject: Subject, *, opposed: bool = False) -> Claimed:
    recipe = subject.recipe
    return Claimed(
        sampling_rate=recipe.sampling_rate,
        noise_multiplier=recipe.noise_multiplier,
        opposed=opposed,
    )


def _crowded(
    subject: Subject, system: System, effort: Effort, seed: int, progress: Progress
) -> list[Play]:
    deck = subject.deck(num_canaries=effort.num_canaries, num_ordinary=effort.num_ordinary)
    plays: list[Play] = []
    steps = itertools.count(1)

    def on_step() -> None:
        progress("runs with many canaries", next(steps), effort.num_runs * subject.steps)

    for number in range(effort.num_runs):
        seed_of_run = derive_seed(seed, "many", number)
        plays.append(play(subject, deck, system, seed_of_run, on_step))
    return plays


def _lone(
    subject: Subject, system: System, effort: Effort, seed: int, progress: Progress
) -> Sample:
    """Runs with and without the canary, in turns."""
    alone = replace(subject, model=None, image_shape=(1, 1, 1))
    opposed = subject.recipe.sampling_rate >= _OPPOSED_FROM
    deck = alone.deck(num_canaries=1, num_ordinary=1, opposed=opposed)
    table = Table(alone, deck, system)
    present = np.arange(effort.num_lone_runs) % 2 == 0
    found: list[Sample] = []
    for number, there in enumerate(present):
        seen = table.play(present[number : number + 1], derive_seed(seed, "lone", number))
        own = scores.of_seen(seen, _claimed(subject, opposed=opposed))
        found.append(Sample(scores=own, present=np.array([there])))
        progress("runs with one canary or none", number + 1, effort.num_lone_runs)
    return Sample.joined(found)


def _one_run(evidence: Evidence, confidence: float) -> Bound:
    (learnt, judged), delta = evidence.crowded, evidence.subject.recipe.delta
    ranking = best_ranking(learnt, delta, confidence)
    return Bound(
        name="one run",
        epsilon=one_run_of(ranking, judged, delta, confidence),
        assumes="",
        score=ranking.name,
    )


def _rates_alone(evidence: Evidence, confidence: float) -> Bound:
    learnt, judged = evidence.lone
    rule = best_rule(learnt, ratio, confidence)
    rates = rule.rates(judged, confidence)
    return Bound(
        name="lone canaries, any mechanism",
        epsilon=from_rates(rates, evidence.subject.recipe.delta),
        assumes="",
        score=rule.name,
    )


def _trade_off(
    name: str,
    subject: Subject,
    samples: tuple[Sample, Sample],
    confidence: float,
    assumes: str,
) -> Bound:
    learnt, judged = samples
    recipe = subject.recipe
    rule: Rule = best_rule(learnt, distance, confidence)
    rates = rule.rates(judged, confidence)
    return Bound(
        name=name,
        epsilon=sampled_gaussian(
            rates, recipe.delta, sampling_rate=recipe.sampling_rate, steps=subject.steps
        ),
        assumes="; ".join(filter(None, (_SAMPLED, assumes))),
        score=rule.name,
        mu=rates.mu,
        epsilon_gaussian=gaussian(rates, recipe.delta),
    )
