"""The figures of a run's page, as coordinates for plain SVG.

The template draws them, not matplotlib: their colours then follow the page's light, dark and
print styles, and their labels stay text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulations.report.page import Page
from simulations.report.wording import decimals, plain, round_up, site_names

_MOST_CURVES = 8  # more cannot be told apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve, or a horizontal reference; a point without a value interrupts it."""

    label: str
    points: tuple[tuple[float, float | None], ...]
    reference: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure in a box of 440 x 270 units.

    Attributes:
        name: of its elements in the page.
        title: what it is about.
        summary: what it shows, in words.
        y_label: of the axis upward.
        lines: drawn from left to right.
        x_ticks: places and labels.
        y_ticks: places.
        x_range: ends of the other axis.
        interval: (x, low, middle, high) of one more figure.
        bars: (x, low, high), intervals of the first line's points.
        x_label: of the axis to the right.
        source: where its numbers stand in the page.
    """

    name: str
    title: str
    summary: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[float, ...]
    x_range: tuple[float, float]
    interval: tuple[float, float, float, float] | None = None
    bars: tuple[tuple[float, float, float], ...] = ()
    x_label: str = "round"
    source: str = "The numbers are in the table of rounds below."

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


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalAxis:
    """One scale for the intervals that stand in the rows of tables, in boxes 220 units wide."""

    ticks: tuple[float, ...]
    overall: float

    width, left, right = 220.0, 12.0, 208.0

    def x(self, value: float) -> float:
        """Where ``value`` stands from left to right; what is off the scale stands at its end."""
        low, high = self.ticks[0], self.ticks[-1]
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.left + share * (self.right - self.left), 1)


def interval_axis(page: Page) -> IntervalAxis | None:
    """The scale on which labels and groups are compared; ``None`` without a final test."""
    if page.test is None:
        return None
    rows = [page.test, *page.labels, *(row for values in page.groups.values() for row in values)]
    lows = [row["auroc_ci95"][0] for row in rows if row.get("auroc_ci95")]
    return IntervalAxis(ticks=_auroc_ticks(min(lows)), overall=page.test["auroc"])


def _auroc_ticks(lowest: float) -> tuple[float, ...]:
    """From 0.4 in steps of 0.1 if that holds all; else from 0 in steps of 0.2."""
    floor = 4 if lowest >= 0.4 else 0
    return tuple(tenth / 10 for tenth in range(floor, 11, 1 if floor else 2))


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
    last_x = last + 0.5 + (interval is not None)
    return Chart(
        name="auroc",
        title=_question(page),
        summary=" ".join([*words, "Guessing gives 0.50."]),
        y_label=f"mean AUROC over the {page.plural}" if page.several else "AUROC",
        lines=(
            Line(label="validation, after each round", points=curve),
            Line(label="guessing", points=((0.5, 0.5), (last_x, 0.5)), reference=True),
        ),
        x_ticks=x_ticks,
        y_ticks=_auroc_ticks(min(shown)),
        x_range=(0.5, last_x),
        interval=interval,
    )


def reliability_chart(page: Page) -> Chart | None:
    """Probability against truth, of a task with one label; ``None`` if it was not measured."""
    if page.several or not page.labels or not page.labels[0].get("reliability"):
        return None
    points = page.labels[0]["reliability"]
    curve = tuple((point["predicted"], point["observed"]["value"]) for point in points)
    bars = tuple(
        (point["predicted"], *point["observed"]["ci95"])
        for point in points
        if point["observed"]["ci95"] is not None
    )
    told = "; ".join(
        f"probability {point['predicted']:.2f}, share {decimals(point['observed']['value'], 2)}"
        for point in points
    )
    tenths = tuple(tenth / 10 for tenth in range(0, 11, 2))
    return Chart(
        name="reliability",
        title="Whether its probabilities mean what they say",
        summary=f"In bins of equally many images: {told}. On the diagonal both are the same.",
        y_label="share of images with the label",
        lines=(
            Line(label="test images, with 95 % intervals", points=curve),
            Line(label="right probabilities", points=((0.0, 0.0), (1.0, 1.0)), reference=True),
        ),
        x_ticks=tuple((tenth, plain(tenth)) for tenth in tenths),
        y_ticks=tenths,
        x_range=(0.0, 1.0),
        bars=bars,
        x_label="mean probability of the bin",
        source="",
    )


def _question(page: Page) -> str:
    """What an AUROC of this study is about."""
    match page.task_kind:
        case "multiclass":
            return f"How well the model tells {len(page.names)} classes apart"
        case "multilabel":
            return f"How well the model recognises {page.count_of_names(len(page.names))}"
        case _:
            return f"How well the model recognises “{page.names[0]}”"


def _epsilon_chart(page: Page) -> Chart | None:
    if page.epsilon is None or page.epsilon <= 0 or not page.rounds:
        return None
    curves: dict[tuple[tuple[float, float | None], ...], list[str]] = {}
    budgets: dict[float, list[str]] = {}
    for site in page.sites:
        curves.setdefault(_spent(page, site.name), []).append(site.name)
        if site.epsilon_budget is not None:
            budgets.setdefault(site.epsilon_budget, []).append(site.name)
    if page.samples_sites and len(curves) > _MOST_CURVES:
        curves = {_largest_spent(page): [site.name for site in page.sites]}
    last_x = page.rounds_planned + 0.5
    references = [
        Line(
            label=f"budget {plain(budget)} ({site_names(names, len(page.sites))})",
            points=((0.5, budget), (last_x, budget)),
            reference=True,
        )
        for budget, names in budgets.items()
    ]
    lines = [
        Line(label=_who(names, page, alone=len(curves) == 1), points=points)
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
        y_ticks=_ticks(max([page.epsilon, *budgets])),
        x_range=(0.5, last_x),
    )


def _spent(page: Page, site: str) -> tuple[tuple[float, float | None], ...]:
    """Epsilon after each round; in rounds that did not ask the hospital nothing was added."""
    points: list[tuple[float, float | None]] = []
    for entry in page.rounds:
        past = (entry.get("sites") or {}).get(site)
        value = None if past is None else past.get("epsilon")
        if past is None and page.samples_sites:
            value = points[-1][1] if points else 0.0
        points.append((entry["round"], value))
    return tuple(points)


def _largest_spent(page: Page) -> tuple[tuple[float, float | None], ...]:
    """After each round the largest epsilon of any hospital."""
    rounds = zip(*(_spent(page, site.name) for site in page.sites), strict=True)
    return tuple(
        (points[0][0], max((e for _, e in points if e is not None), default=None))
        for points in rounds
    )


def _who(names: Sequence[str], page: Page, *, alone: bool) -> str:
    """Whose curve it is; one of many hospitals that were asked apart is of the largest."""
    if alone and page.samples_sites:
        return "largest of any hospital"
    return site_names(names, len(page.sites))


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
