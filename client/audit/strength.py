"""How strong a membership attack is, and what that proves: figures with intervals.

All figures here are derived from patients without noise. They stay at the site; what a hospital
may release of them is one word, `Proof.passes_claim`, and that by its own policy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from client.audit.attack import Sample, best_rule, ratio
from client.audit.bounds import Rates, from_rates

Floats = NDArray[np.float64]
Interval = tuple[float, float]
# The largest true-positive rate that a claim allows at a false-positive rate.
TradeOff = Callable[[float], float]

RATES = (0.01, 0.001)
LEAST_PATIENTS = 8  # members, and as many others: with fewer nothing can be said
_REDRAWS, _AT_ONCE = 1000, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """How many members an attack finds at a false-positive rate.

    Attributes:
        fpr: at most this share of non-members is taken for members.
        tpr: share of members found.
        interval: 95 %; see `measure`.
        false_positives: non-members that are taken for members: 0 where there are fewer of them
            than 1 / fpr.
    """

    fpr: float
    tpr: float
    interval: Interval
    false_positives: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Strength:
    """How well an attack tells members from non-members.

    Attributes:
        auc: area under the ROC curve; 0.5 is guessing.
        interval: 95 %, from redrawing members and non-members.
        found: true-positive rates.
    """

    auc: float
    interval: Interval
    found: tuple[Found, ...]

    @property
    def above_chance(self) -> bool:
        """Whether the interval of the AUC lies above one half."""
        return self.interval[0] > 0.5


def measure(scores: Floats, member: NDArray[np.bool_], *, seed: int) -> Strength:
    """The strength of an attack with ``scores`` (P,) of patients.

    Intervals come from 1,000 redraws of members and of non-members, who count as patients, not
    images; the threshold is chosen anew in each. That of a true-positive rate also holds the exact
    interval of Clopper and Pearson at the threshold of all patients, because redraws of members of
    whom none was found never find one.

    Raises:
        ValueError: if there are fewer than two members or non-members.
    """
    inside, outside = int(member.sum()), int((~member).sum())
    if min(inside, outside) < 2:
        raise ValueError("member: at least 2 members and 2 non-members are needed")
    curve = _Curve(scores, member)
    auc, rates, mistaken = curve.figures(np.ones((1, len(scores))))
    rng = np.random.default_rng(seed)
    aucs, redrawn = [], []
    for _ in range(_REDRAWS // _AT_ONCE):
        counts = np.zeros((_AT_ONCE, len(scores)))
        for group, size in ((member, inside), (~member, outside)):
            counts[:, group] = rng.multinomial(size, np.full(size, 1 / size), size=_AT_ONCE)
        one, some, _ = curve.figures(counts)
        aucs.append(one)
        redrawn.append(some)
    low, high = np.quantile(np.concatenate(aucs), (0.025, 0.975))
    lows, highs = np.quantile(np.concatenate(redrawn), (0.025, 0.975), axis=0)
    return Strength(
        auc=float(auc[0]),
        interval=(float(low), float(high)),
        found=tuple(
            Found(
                fpr=fpr,
                tpr=float(rates[0, i]),
                interval=_widened((lows[i], highs[i]), float(rates[0, i]), inside),
                false_positives=int(mistaken[0, i]),
            )
            for i, fpr in enumerate(RATES)
        ),
    )


class _Curve:
    """Patients in the order of their scores, highest first; equal scores are one group."""

    def __init__(self, scores: Floats, member: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self._member = member[self._order].astype(float)

    def figures(self, counts: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Of samples in which patients are so often (B, P).

        Returns:
            (B,) areas under the ROC curve; and (B, F) at each false-positive rate F: the share of
            members found, and how many non-members are with them.
        """
        ordered = counts[:, self._order]
        inside = np.add.reduceat(ordered * self._member, self._starts, axis=1)
        outside = np.add.reduceat(ordered * (1 - self._member), self._starts, axis=1)
        found, mistaken = inside.cumsum(1), outside.cumsum(1)
        num_inside, num_outside = found[:, -1], mistaken[:, -1]
        beaten = (num_outside[:, None] - mistaken + outside / 2) * inside
        columns = []
        for fpr in RATES:
            # all groups above the first that would bring in too many non-members
            last = (mistaken <= np.floor(fpr * num_outside + 1e-9)[:, None]).sum(1)
            columns.append((_before(found, last), _before(mistaken, last)))
        rates = np.stack([found for found, _ in columns], 1) / num_inside[:, None]
        others = np.stack([others for _, others in columns], 1)
        return beaten.sum(1) / (num_inside * num_outside), rates, others.astype(np.int64)


def _before(sums: Floats, last: NDArray[np.int64]) -> Floats:
    """(B,) of running ``sums`` (B, U) those after the first ``last`` (B,) terms."""
    padded = np.concatenate([np.zeros((len(sums), 1)), sums], 1)
    return padded[np.arange(len(sums)), last]


def _widened(redrawn: Interval, rate: float, num: int) -> Interval:
    """An interval from redraws that holds the exact one of ``rate`` of ``num``."""
    exact = stats.binomtest(round(rate * num), num).proportion_ci(0.95)
    return min(float(redrawn[0]), float(exact.low)), max(float(redrawn[1]), float(exact.high))


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What attacks prove about epsilon.

    Attributes:
        attack: the one that was chosen.
        rates: bounds of its rates, that hold together with ``confidence``.
        epsilon: lower bound.
        confidence: of the bound.
        passes_claim: whether the attack finds more members than the claim allows.
    """

    attack: str
    rates: Rates
    epsilon: float
    confidence: float
    passes_claim: bool


def prove(
    scores: Mapping[str, Floats],
    member: NDArray[np.bool_],
    *,
    delta: float,
    allowed: TradeOff,
    confidence: float,
    seed: int,
) -> Proof:
    """A lower bound of epsilon from attacks with ``scores`` (P,) each, by name.

    One half of the patients, drawn by ``seed``, chooses an attack and a threshold; the other half
    judges them, with bounds of Clopper and Pearson and log((TPR - delta) / FPR) (Kairouz, Oh,
    Viswanath 2015, arXiv 1311.0776). Assumes that members and non-members were drawn from the same
    people, and that who is found does not depend on who else is: in one training run both hold only
    nearly, and an official split of a study may break the first.

    Args:
        scores: of every attack.
        member: (P,), who was trained on.
        delta: of the claim.
        allowed: what the claim allows; everything, where nothing is claimed.
        confidence: of the bound.
        seed: decides the halves.

    Raises:
        ValueError: if there are fewer than 8 members or non-members.
    """
    if min(int(member.sum()), int((~member).sum())) < LEAST_PATIENTS:
        raise ValueError(f"member: at least {LEAST_PATIENTS} members and non-members are needed")
    first = _half(member, seed)
    learnt, judged = (
        Sample(scores={name: one[part] for name, one in scores.items()}, present=member[part])
        for part in (first, ~first)
    )
    rule = best_rule(learnt, ratio, confidence)
    rates = rule.rates(judged, confidence)
    return Proof(
        attack=rule.name,
        rates=rates,
        epsilon=from_rates(rates, delta),
        confidence=confidence,
        passes_claim=passes(rates, allowed),
    )


def passes(rates: Rates, allowed: TradeOff) -> bool:
    """The one answer that may leave a hospital: does an attack pass what the claim allows?

    With the bounds of the rates instead of the rates: yes if more members are found, or more
    non-members are rightly let go, than any attack on a training with this claim can.
    """
    found, mistaken = rates.true_positive, rates.false_positive
    return found > allowed(mistaken) or 1 - mistaken > allowed(1 - found)


def _half(member: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """(P,), a half of the members and a half of the others."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(member), dtype=bool)
    for group in (member, ~member):
        people = rng.permutation(np.flatnonzero(group))
        chosen[people[: len(people) // 2]] = True
    return chosen
