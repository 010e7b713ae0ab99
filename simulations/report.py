"""The page of a run: `result.json` in, one self-contained HTML file out.

The figures are drawn by the template as plain SVG, not by matplotlib: their colours then follow
the page's light, dark and print styles, and their labels stay text.

The page shows nothing that `result.json` does not hold (docs/result.md), so it may go wherever
that file may go. Epsilons and true-positive-rate bounds are rounded up, never down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from common.errors import UsageError
from common.files import write_atomically

SCHEMA = "fedward.result/1"

_ACCOUNTANTS = {"pld": "PLD", "rdp": "RDP", "prv": "PRV"}
_MECHANISMS = {"dp_sgd": "DP-SGD"}
_REASONS = {
    "budget_exceeded": "one more round would have passed its privacy budget",
    "refused": "the hospital declined",
}

_PRIVACY = (
    "accountant",
    "accountant_version",
    "adjacency",
    "delta",
    "epsilon_federation",
    "epsilon_target",
    "max_grad_norm",
    "mechanism",
    "noise_multiplier",
    "private",
    "rounds_planned",
    "sampler",
    "sampling_rate",
    "sites",
    "steps_per_round",
    "unit",
)

Result = Mapping[str, Any]


def render(result: Result) -> str:
    """The HTML page of one run, as a string.

    Needs no network, no script and no other file. Fields that a run did not reach (a failed run has
    no ``final``) are said to be missing.

    Args:
        result: the content of `result.json`.

    Raises:
        UsageError: the schema is not one that this version reads.
    """
    if result.get("schema") != SCHEMA:
        raise UsageError(
            f"schema={result.get('schema')!r}: this version writes reports for {SCHEMA!r} only"
        )
    source = (files("simulations") / "report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "up": round_up,
        "plain": plain,
        "decimals": decimals,
        "unbroken": unbroken,
    }
    page = Page(result)
    return environment.from_string(source).render(
        page=page, answer=answer(result), charts=charts(page)
    )


def write(result: Result, path: Path) -> None:
    """Write the page to ``path``, whole or not at all.

    Raises:
        UsageError: as `render`.
        OSError: the folder cannot be written.
    """
    write_atomically(path, render(result))


def answer(result: Result) -> str:
    """What came out, in two sentences: how good the model is, and how private.

    Never calls a run private unless a finite epsilon holds for every hospital.
    """
    page = Page(result)
    return f"{_utility(page)} {_privacy(page)}"


def _utility(page: Page) -> str:
    trained = sum(site.rounds_trained > 0 for site in page.sites)
    who = f"{trained or 'no'} simulated hospital{'' if trained in {0, 1} else 's'}"
    on = "generated phantoms" if page.phantom else f"the study {page.study}"
    if page.test is None:
        ended = "failed" if page.state == "failed" else "ended early"
        return f"The run {ended} and left no final model; {who} had trained on {on}."
    low, high = page.test["auroc_ci95"]
    interval = f"95\u00a0% CI {decimals(low, 2)} to {decimals(high, 2)}"
    figure = f"test AUROC {decimals(page.test['auroc'], 2)} ({interval})"
    return f"{who} trained {'a' if trained == 1 else 'a shared'} model on {on}: {figure}."


def _privacy(page: Page) -> str:
    privacy = page.privacy
    if page.epsilon is None:
        cause = (
            "it was trained without differential privacy"
            if privacy["mechanism"] in {None, "none"}
            else "no finite epsilon holds for every hospital"
        )
        subject = "The model" if page.test is not None else "What was released until then"
        return (
            f"{subject} is NOT private: {cause}, so nothing limits what it can reveal about each "
            f"hospital's {page.persons}."
        )
    if page.epsilon == 0:
        return f"No hospital released anything, so no privacy of its {page.persons} was spent."
    terms = (
        f"delta {round_up(privacy['delta'])}, {page.unit_level}, {page.mechanism}, "
        f"{page.accountant} accountant"
    )
    scope = "" if page.test is not None else " in what was released until then"
    return (
        f"Each hospital's {page.persons} are protected at epsilon ≤ {round_up(page.epsilon)} "
        f"({terms}){scope}."
    )


def round_up(value: float | None, digits: int = 2) -> str:
    """``value`` with ``digits`` decimals, or as many significant ones below 0.1, rounded up.

    >>> round_up(7.9712), round_up(7.98), round_up(0.00123), round_up(1e-5), round_up(None)
    ('7.98', '7.98', '0.0013', '1e-5', 'infinite')
    """
    if value is None or not math.isfinite(value):
        return "infinite"
    exact = Decimal(repr(float(value)))
    if value == 0 or value >= 0.1:
        return str(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_CEILING)
    return plain(float(rounded))


def plain(value: object) -> str:
    """A setting as text: short numbers without padding, "not set" for nothing.

    >>> plain(8.0), plain(1e-05), plain(None), plain(True), plain([1, 2.5])
    ('8', '1e-5', 'not set', 'yes', '1, 2.5')
    """
    match value:
        case None:
            return "not set"
        case bool():
            return "yes" if value else "no"
        case float():
            return re.sub(r"e([+-])0+", r"e\1", f"{value:.6g}")
        case list() | tuple():
            return ", ".join(plain(item) for item in value) or "none"
        case _:
            return str(value)


def unbroken(text: str) -> Markup:
    """``text`` escaped, with numbers such as 1e-5 kept on one line.

    >>> unbroken("delta 1e-5 < 1")
    Markup('delta <span class="whole">1e-5</span> &lt; 1')
    """
    number = re.compile(r"[0-9.]+e-[0-9]+")
    return Markup(number.sub(r'<span class="whole">\g<0></span>', str(escape(text))))


def decimals(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` decimals; "not measured" for nothing."""
    return "not measured" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRow:
    """One hospital's row: what it did and what it spent."""

    name: str
    num_patients: int | None
    status: str
    rounds_trained: int
    epsilon: float | None
    epsilon_rdp: float | None
    epsilon_budget: float | None
    tpr_bounds: Mapping[str, float]
    reason: str | None


class Page:
    """`result.json` as the template reads it; every absent field has an honest stand-in."""

    def __init__(self, result: Result) -> None:
        """Read ``result`` and keep it."""
        self.result = result
        self.title: str = result.get("title") or "untitled run"
        self.state: str = result.get("state") or "failed"
        self.config: Result = result.get("config") or {}
        self.versions: Result = result.get("versions") or {}
        self.rounds: Sequence[Result] = result.get("rounds") or []
        self.final: Result = result.get("final") or {}
        self.test: Result | None = self.final.get("test")
        self.privacy: Result = dict.fromkeys(_PRIVACY) | dict(result.get("privacy") or {})
        study: Result = result.get("study") or {}
        self.study: str = study.get("name") or "(unnamed)"
        self.public: str | None = study.get("public")
        self.num_train_patients: int | None = study.get("num_train_patients")
        self.num_train_images: int | None = study.get("num_train_images")
        kind = (self.config.get("data") or {}).get("kind")
        self.phantom = "phantom" in (kind, self.study)
        self.person, self.persons = (
            ("phantom", "phantoms") if self.phantom else ("patient", "patients")
        )
        self.sites = _sites(self.rounds, self.privacy["sites"] or {})

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon stated; ``None`` (infinite) as soon as one is missing.

        Zero if the run ended before any hospital was asked.
        """
        if not self.privacy["private"]:
            return None
        if not self.sites:
            return 0.0
        stated = [self.privacy["epsilon_federation"], *(site.epsilon for site in self.sites)]
        finite = [value for value in stated if value is not None and math.isfinite(value)]
        return max(finite) if len(finite) == len(stated) else None

    @property
    def likelihood_ratio(self) -> str:
        """The number e to the power of the largest epsilon, rounded up to three digits."""
        if self.epsilon is None or self.epsilon > 30:
            return "more than 1,000,000,000,000"
        exact = Decimal(repr(math.exp(self.epsilon)))
        unit = Decimal(1).scaleb(exact.adjusted() - 2)
        return f"{exact.quantize(unit, ROUND_CEILING):,f}"

    @property
    def unit_level(self) -> str:
        """Whose presence is hidden, as an epsilon is labelled."""
        unit = self.privacy["unit"] or "unknown"
        if self.phantom and unit == "patient":
            return "one phantom counted as one patient"
        return f"{unit} level"

    @property
    def accountant(self) -> str:
        """The accountant's short name."""
        name = self.privacy["accountant"] or "unknown"
        return _ACCOUNTANTS.get(name, name)

    @property
    def mechanism(self) -> str:
        """The mechanism's usual name."""
        name = self.privacy["mechanism"] or "unknown"
        return _MECHANISMS.get(name, name)

    @property
    def terms(self) -> str:
        """All that an epsilon needs beside it."""
        privacy = self.privacy
        version = privacy["accountant_version"] or "version unknown"
        sampler = str(privacy["sampler"] or "unknown").capitalize()
        return (
            f"delta {round_up(privacy['delta'])}, {self.unit_level}, "
            f"{privacy['adjacency'] or 'unknown'} adjacency, {self.mechanism} with {sampler} "
            f"sampling, {self.accountant} accountant, {version}, all rounds together"
        )

    @property
    def rounds_planned(self) -> int:
        """Rounds that the run was to have, at least those it had."""
        federation: Result = self.config.get("federation") or {}
        planned = self.privacy["rounds_planned"] or federation.get("rounds") or 1
        return max(planned, *(entry["round"] for entry in self.rounds), 1)

    @property
    def incomplete(self) -> list[SiteRow]:
        """Hospitals that missed a round."""
        return [site for site in self.sites if site.rounds_trained < len(self.rounds)]

    @property
    def num_in_last_round(self) -> int:
        """How many hospitals trained in the last round."""
        return sum(site.status == "trained" for site in self.sites)

    @property
    def epsilon_rdp(self) -> float | None:
        """The largest epsilon that the RDP accountant gives for a hospital, if it was asked."""
        stated = [site.epsilon_rdp for site in self.sites if site.epsilon_rdp is not None]
        return max(stated, default=None)

    @property
    def tpr_rows(self) -> list[tuple[str, Mapping[str, float]]]:
        """Bounds on the true-positive rate, hospitals with the same bounds in one row."""
        grouped: dict[tuple[tuple[str, float], ...], list[str]] = {}
        for site in self.sites:
            grouped.setdefault(tuple(sorted(site.tpr_bounds.items())), []).append(site.name)
        return [(_names(own, len(self.sites)), dict(bounds)) for bounds, own in grouped.items()]

    @property
    def tpr_rates(self) -> list[str]:
        """The false-positive rates that some hospital has a bound for, largest first."""
        return sorted({rate for site in self.sites for rate in site.tpr_bounds}, key=float)[::-1]

    @property
    def settings(self) -> list[tuple[str, str]]:
        """The resolved configuration, one dotted name per line."""
        return [(name, plain(value)) for name, value in _flattened(self.config)]

    def num_with_status(self, entry: Result, status: str) -> int:
        """How many hospitals had ``status`` in the round ``entry``."""
        return sum(site.get("status") == status for site in (entry.get("sites") or {}).values())

    def largest_epsilon(self, entry: Result) -> float | None:
        """The largest epsilon that a hospital had spent after the round ``entry``."""
        spent = [site.get("epsilon") for site in (entry.get("sites") or {}).values()]
        return max((value for value in spent if value is not None), default=None)


def _sites(rounds: Sequence[Result], spending: Result) -> tuple[SiteRow, ...]:
    """Every hospital that a round or the ledger names, hospital-2 before hospital-10."""
    names = {*spending, *(name for entry in rounds for name in entry.get("sites") or {})}

    def row(name: str) -> SiteRow:
        history: list[Result] = [(entry.get("sites") or {}).get(name) or {} for entry in rounds]
        reasons = [past["reason"] for past in history if past.get("reason")]
        spent: Result = spending.get(name) or {}
        return SiteRow(
            name=name,
            num_patients=spent.get("num_patients"),
            status=(history[-1].get("status") if history else None) or "absent",
            rounds_trained=sum(past.get("status") == "trained" for past in history),
            epsilon=spent.get("epsilon"),
            epsilon_rdp=spent.get("epsilon_rdp"),
            epsilon_budget=spent.get("epsilon_budget"),
            tpr_bounds=spent.get("tpr_bound_at_fpr") or {},
            reason=_REASONS.get(reasons[-1], reasons[-1]) if reasons else None,
        )

    return tuple(row(name) for name in sorted(names, key=_natural))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(part[0] > "9", int(part) if part.isdecimal() else 0, part) for part in parts]


def _flattened(tree: Result, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve, or a horizontal reference; a point without a value interrupts it."""

    label: str
    points: tuple[tuple[float, float | None], ...]
    reference: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure over rounds in a box of 440 x 270 units; ``interval`` is (x, low, middle, high)."""

    name: str
    title: str
    summary: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[float, ...]
    x_range: tuple[float, float]
    interval: tuple[float, float, float, float] | None = None

    left, right, top, bottom = 46.0, 430.0, 12.0, 224.0

    def x(self, value: float) -> float:
        """Where ``value`` stands from left to right."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Where ``value`` stands from top to bottom."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def path(self, line: Line) -> str:
        """The curve as SVG path data."""
        steps, pen = [], "M"
        for x, y in line.points:
            if y is None:
                pen = "M"
            else:
                steps.append(f"{pen}{self.x(x)} {self.y(y)}")
                pen = "L"
        return " ".join(steps)


def charts(page: Page) -> list[Chart]:
    """AUROC and epsilon over rounds, each only where there is something to draw."""
    drawn = (_auroc_chart(page), _epsilon_chart(page))
    return [chart for chart in drawn if chart is not None]


def _auroc_chart(page: Page) -> Chart | None:
    curve = tuple(
        (entry["round"], (entry.get("evaluation") or {}).get("auroc")) for entry in page.rounds
    )
    measured = [(number, value) for number, value in curve if value is not None]
    if not measured and page.test is None:
        return None
    last = page.rounds_planned
    x_ticks = _round_ticks(last)
    shown, interval, words = [value for _, value in measured], None, []
    if measured:
        words.append(
            f"Validation AUROC: {measured[0][1]:.2f} after round {measured[0][0]}, "
            f"{measured[-1][1]:.2f} after round {measured[-1][0]}."
        )
    if page.test is not None:
        low, high = page.test["auroc_ci95"]
        interval = (last + 1.0, low, page.test["auroc"], high)
        x_ticks = (*x_ticks, (last + 1.0, "test"))
        shown.append(low)
        words.append(f"Test AUROC: {page.test['auroc']:.2f}, interval {low:.2f} to {high:.2f}.")
    floor = 4 if min(shown) >= 0.4 else 0
    last_x = last + 0.5 + (interval is not None)
    return Chart(
        name="auroc",
        title="How well the model tells malignant from benign",
        summary=" ".join([*words, "Guessing gives 0.50."]),
        y_label="AUROC",
        lines=(
            Line(label="validation, after each round", points=curve),
            Line(label="guessing", points=((0.5, 0.5), (last_x, 0.5)), reference=True),
        ),
        x_ticks=x_ticks,
        y_ticks=tuple(tenth / 10 for tenth in range(floor, 11, 1 if floor else 2)),
        x_range=(0.5, last_x),
        interval=interval,
    )


def _epsilon_chart(page: Page) -> Chart | None:
    if page.epsilon is None or page.epsilon <= 0 or not page.rounds:
        return None
    curves: dict[tuple[tuple[float, float | None], ...], list[str]] = {}
    budgets: dict[float, list[str]] = {}
    for site in page.sites:
        history = [((entry.get("sites") or {}).get(site.name) or {}) for entry in page.rounds]
        numbers = [entry["round"] for entry in page.rounds]
        spent = tuple((n, past.get("epsilon")) for n, past in zip(numbers, history, strict=True))
        curves.setdefault(spent, []).append(site.name)
        if site.epsilon_budget is not None:
            budgets.setdefault(site.epsilon_budget, []).append(site.name)
    last_x = page.rounds_planned + 0.5
    references = [
        Line(
            label=f"budget {plain(budget)} ({_names(names, len(page.sites))})",
            points=((0.5, budget), (last_x, budget)),
            reference=True,
        )
        for budget, names in budgets.items()
    ]
    lines = [
        Line(label=_names(names, len(page.sites)), points=points)
        for points, names in curves.items()
    ]
    caps = f", budget {' and '.join(plain(budget) for budget in budgets)}" if budgets else ""
    return Chart(
        name="epsilon",
        title="Privacy spent at each hospital",
        summary=f"Largest epsilon after the last round: {round_up(page.epsilon)}{caps}.",
        y_label="epsilon",
        lines=(*lines, *references),
        x_ticks=_round_ticks(page.rounds_planned),
        y_ticks=_ticks(max(page.epsilon, *budgets)),
        x_range=(0.5, last_x),
    )


def _names(names: Sequence[str], num_sites: int) -> str:
    """Hospitals that share a curve, in a few words."""
    if len(names) == num_sites > 1:
        return f"all {num_sites} hospitals"
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


def _ticks(high: float) -> tuple[float, ...]:
    """Four to ten round numbers from 0 to at least ``high``."""
    power = 10.0 ** math.floor(math.log10(high))
    step = next(
        power * size for size in (0.1, 0.2, 0.25, 0.5, 1, 2) if high <= 8 * power * size * 1.0001
    )
    return tuple(step * index for index in range(math.ceil(high / step - 1e-9) + 1))


def _round_ticks(last: int) -> tuple[tuple[float, str], ...]:
    """At most ten round numbers, the last one always."""
    step = math.ceil(last / 10)
    return tuple((float(number), str(number)) for number in range(last, 0, -step))[::-1]
