"""What a comparison says, in two sentences: the price of privacy, and what collaboration gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simulations.comparison.curves import Comparison, exceeds, spaced
from simulations.report.wording import round_up


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A difference in AUROC, turned so that it reads as a gain or a price.

    Attributes:
        value: of the figure.
        ends: of its 95 % interval; ``None`` if there is none.
        epsilon: of the cells; ``None`` is no privacy.
    """

    value: float
    ends: tuple[float, float] | None
    epsilon: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.ends is not None and (self.ends[0] > 0 or self.ends[1] < 0)

    def __neg__(self) -> Gain:
        ends = None if self.ends is None else (-self.ends[1], -self.ends[0])
        return Gain(value=-self.value, ends=ends, epsilon=self.epsilon)

    @property
    def figures(self) -> str:
        """With sign and interval."""
        value = _signed(self.value, self._digits)
        if self.ends is None:
            return f"{value}, no interval"
        low, high = (_signed(end, self._digits) for end in self.ends)
        return f"{value}, 95\u00a0% interval {low} to {high}"

    @property
    def size(self) -> str:
        """Without a sign: what is gained, or lost."""
        upward, digits = self if self.value >= 0 else -self, self._digits
        value = f"{upward.value:.{digits}f} AUROC"
        if upward.ends is None:
            return f"{value} (no interval)"
        low, high = upward.ends
        return f"{value} (95\u00a0% interval {low:.{digits}f} to {high:.{digits}f})"

    @property
    def _digits(self) -> int:
        """Enough that no end of the interval reads as 0."""
        return 3 if self.ends is not None and min(map(abs, self.ends)) < 0.005 else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One figure at the top: its question, the figure, and what stands beside it."""

    question: str
    figure: str
    beside: str


def answer(comparison: Comparison) -> str:
    """Two sentences, each with its interval; where it holds 0, that no difference can be told."""
    if not comparison["cells"]:
        return "No trial has a result, so there is nothing to compare."
    sentences = [one for one in (_privacy(comparison), _collaboration(comparison)) if one]
    if sentences:
        return " ".join(sentences)
    return "There are figures, but no two ways of training that could be held against each other."


def tiles(comparison: Comparison) -> list[Tile]:
    """The same differences at the smallest epsilon, and beside them without privacy."""
    if not comparison["cells"]:
        return []
    strict = _epsilons(comparison)[:1]
    found: list[Tile] = []
    for epsilon in strict:
        cost = _gain(comparison, "privacy", epsilon)
        if cost is not None:
            found.append(
                Tile(
                    question=f"Privacy: epsilon {epsilon:g} against none",
                    figure=_signed(cost.value),
                    beside=_beside(cost, None),
                )
            )
    where = strict[0] if strict else None
    for about, question, sign in (
        ("alone", "Collaboration against a hospital alone", -1),
        ("federation", "Federation against training in one place", 1),
    ):
        here, plain = (_gain(comparison, about, epsilon) for epsilon in (where, None))
        if here is not None:
            here, plain = (one if one is None or sign > 0 else -one for one in (here, plain))
            assert here is not None
            at = "without privacy" if where is None else f"at epsilon {where:g}"
            found.append(
                Tile(
                    question=f"{question}, {at}",
                    figure=_signed(here.value),
                    beside=_beside(here, plain if where is not None else None),
                )
            )
    return found


def _beside(here: Gain, plain: Gain | None) -> str:
    text = f"AUROC{here.figures[here.figures.index(',') :]}"
    if not here.is_clear:
        text += "; no difference can be told"
    if plain is not None:
        told = "" if plain.is_clear else "; no difference can be told"
        text += f". Without privacy {plain.figures}{told}"
    return text


def _privacy(comparison: Comparison) -> str:
    epsilons = _epsilons(comparison)
    ends = list(dict.fromkeys([*epsilons[:1], *epsilons[-1:]]))
    clauses = list(_prices(comparison, ends))
    if not clauses:
        return ""
    who = _who(comparison)
    text = "; ".join(clauses)
    return f"What privacy costs {who}: {text}."


def _prices(comparison: Comparison, epsilons: list[float]) -> Iterator[str]:
    for epsilon in epsilons:
        gain = _gain(comparison, "privacy", epsilon)
        if gain is None:
            continue
        at = f"at epsilon {epsilon:g}{_claimed(comparison, epsilon)}"
        if not gain.is_clear:
            yield f"{at} no difference to training without privacy can be told ({gain.figures})"
        elif gain.value < 0:
            yield f"{at} it is {gain.size}"
        else:
            yield f"{at} nothing: with it the model is better by {gain.size}"


def _collaboration(comparison: Comparison) -> str:
    """At the smallest epsilon, else without privacy."""
    epsilon = next(iter(_epsilons(comparison)), None)
    lone = _gain(comparison, "alone", epsilon)
    whole = _gain(comparison, "federation", epsilon)
    at = "Without privacy" if epsilon is None else f"At epsilon {epsilon:g}"
    clauses: list[str] = []
    if lone is not None:
        gain = -lone
        if not gain.is_clear:
            clauses.append(
                f"no difference between the federation and a hospital alone can be told "
                f"({gain.figures})"
            )
        elif gain.value > 0:
            clauses.append(f"collaboration gives back {gain.size} over a hospital alone")
        else:
            clauses.append(f"a hospital alone is better than the federation by {gain.size}")
    if whole is not None:
        if not whole.is_clear:
            clauses.append(
                f"no difference between the federation and training in one place can be told "
                f"({whole.figures})"
            )
        elif whole.value < 0:
            clauses.append(f"the federation misses {whole.size} to training in one place")
        else:
            clauses.append(f"the federation is above training in one place by {whole.size}")
    return f"{at} {', and '.join(clauses)}." if clauses else ""


def _who(comparison: Comparison) -> str:
    arm = _arm(comparison)
    use = _augment(comparison)
    beside = "" if use == "none" else f" with synthetic images ({spaced(use)})"
    return ("the federation" if arm == "federated" else f"the arm {arm}") + beside


def _claimed(comparison: Comparison, epsilon: float) -> str:
    """A warning where the epsilon holds on paper only."""
    key = (_arm(comparison), _augment(comparison), epsilon)
    for cell in comparison["cells"]:
        if (cell["arm"], cell["augment"], cell["epsilon"]) == key and exceeds(cell):
            spent = cell["privacy"]["epsilon"]
            honest = "infinite" if spent is None else round_up(spent)
            return f" (claimed only, honestly {honest})"
    return ""


def _gain(comparison: Comparison, about: str, epsilon: float | None) -> Gain | None:
    """A difference of the arms that the answer is about, if it was measured."""
    arm = {"alone": "local", "federation": "federated"}.get(about, _arm(comparison))
    for one in comparison["differences"]:
        cell = one["a"]
        if (one["about"], cell["arm"], cell["augment"], cell["epsilon"]) == (
            about,
            arm,
            _augment(comparison),
            epsilon,
        ):
            return _of(one, epsilon)
    return None


def _of(one: Mapping[str, Any], epsilon: float | None) -> Gain | None:
    told = one["figures"]["auroc"]
    if told["value"] is None:
        return None
    evidence = told["patients_and_seeds"] or told["patients"]
    ends = None if evidence is None else evidence["ci95"]
    return Gain(
        value=told["value"],
        ends=None if ends is None else (ends[0], ends[1]),
        epsilon=epsilon,
    )


def _arm(comparison: Comparison) -> str:
    """The federation, if it is compared; else the first arm."""
    arms = [cell["arm"] for cell in comparison["cells"]]
    return "federated" if "federated" in arms else arms[0]


def _augment(comparison: Comparison) -> str:
    uses = [cell["augment"] for cell in comparison["cells"]]
    return "none" if "none" in uses else uses[0]


def _epsilons(comparison: Comparison) -> list[float]:
    """Finite ones of the arm that the answer is about, ascending."""
    key = (_arm(comparison), _augment(comparison))
    return sorted(
        {
            cell["epsilon"]
            for cell in comparison["cells"]
            if (cell["arm"], cell["augment"]) == key and cell["epsilon"] is not None
        }
    )


def _signed(value: float, digits: int = 2) -> str:
    r"""With a true minus sign.

    >>> ascii(_signed(-0.1))
    "'\\u22120.10'"
    """
    return f"{value:+.{digits}f}".replace("-", "\u2212")
