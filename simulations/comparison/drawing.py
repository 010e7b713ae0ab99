"""Figures of a comparison, drawn once: for papers, and with the page's colours for the page.

Lines differ in dash and marker as well as in colour, so they can be told apart in grey. Text stays
text in SVG and in PDF. Nothing is written into a figure that changes from one run to the next.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simulations.comparison.curves import Bar, Panel, Point, Series

_INK, _MUTED, _GRID, _PAPER = "#16202a", "#4c5a67", "#d3dbe2", "#ffffff"
_LINES = (
    "#0b5a8a", "#b3440c", "#11704b", "#7d3a9c", "#a31d55", "#5a6300", "#006a78", "#6a4a2c",
)  # fmt: skip
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "line", _PAPER: "surface"} | {
    colour: f"c{place}" for place, colour in enumerate(_LINES)
}
"""By colour on paper, what the page's style calls it; the page has others in the dark."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_DASHES = ("-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)))
_COLUMN, _TEXT_WIDTH = 3.5, 7.2  # inches: one column of a paper, and two
_LONGEST = 44
_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "text.color": _INK,
    "text.parse_math": False,  # a dollar sign in a name is one
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedward",
    "pdf.fonttype": 42,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What stands beside the axes; ``guessing`` is where a coin would stand, if anywhere."""

    y: str
    guessing: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """Epsilons as places from left to right: by their logarithm, none at the right end."""

    epsilons: tuple[float, ...]
    own: frozenset[float]

    @classmethod
    def of(cls, panels: Sequence[Panel]) -> _Scale:
        series = [one for panel in panels for one in panel.series]
        own = [point.epsilon for one in series if not one.reference for point in one.points]
        others = [point.epsilon for one in series for point in one.points]
        return cls(epsilons=tuple(sorted({*own, *others})), own=frozenset(own))

    @property
    def finite(self) -> list[float]:
        return [epsilon for epsilon in self.epsilons if math.isfinite(epsilon)]

    @property
    def gap(self) -> float:
        """Between the largest epsilon and none."""
        finite = self.finite
        return 0.5 + 0.15 * (math.log10(finite[-1] / finite[0]) if finite else 0.0)

    def __call__(self, epsilon: float) -> float:
        if math.isfinite(epsilon):
            return math.log10(epsilon)
        return math.log10(self.finite[-1]) + self.gap if self.finite else 0.0

    @property
    def width(self) -> float:
        return self(self.epsilons[-1]) - self(self.epsilons[0])

    def ticks(self) -> list[tuple[float, str]]:
        """Those with room for their label; the comparison's own, and large ones, come first."""
        kept: list[tuple[float, str]] = []
        for epsilon in sorted(self.epsilons, key=lambda one: (one in self.own, one))[::-1]:
            place = self(epsilon)
            if all(abs(other - place) > 0.075 * max(self.width, 0.5) for other, _ in kept):
                kept.append((place, f"{epsilon:g}" if math.isfinite(epsilon) else "none"))
        return sorted(kept)


def draw_panels(
    panels: Sequence[Panel], labels: Labels, *, among: Sequence[Panel] | None = None
) -> Figure:
    """Values against epsilon, panels side by side on one scale; on that of ``among`` if given."""
    with _style():
        columns = min(len(panels), 3)
        rows = math.ceil(len(panels) / columns)
        width = _COLUMN if len(panels) == 1 else _TEXT_WIDTH
        lines = list(dict.fromkeys(one.label for panel in panels for one in panel.series))
        figure = Figure(
            figsize=(width, 2.3 * rows + 0.35 + 0.17 * len(lines)), layout="constrained"
        )
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        scale = _Scale.of(among or panels)
        for panel, axes in zip(panels, grid.flat, strict=False):
            _panel(axes, panel, scale, lines)
            if len(panels) > 1:
                axes.set_title(_short(panel.title))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel(labels.y)
        for axes in grid.flat:
            if labels.guessing is not None:
                axes.axhline(labels.guessing, color=_MUTED, linewidth=0.6, zorder=0)
        grid[0, 0].set_ylim(*_heights(among or panels, labels))
        _key(figure, panels, lines, labels)
        return figure


def draw_bars(bars: Sequence[Bar], label: str) -> Figure:
    """Differences with their intervals, one below the other; a line where there is none."""
    with _style():
        figure = Figure(figsize=(_TEXT_WIDTH, 0.6 + 0.22 * len(bars)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=_MUTED, linewidth=0.8)
        for place, one in enumerate(bars):
            if one.ends is not None:
                axes.plot(one.ends, (place, place), color=_LINES[0], linewidth=1.4)
            axes.plot(one.value, place, marker="s", color=_LINES[0], markersize=4)
        axes.set_yticks(range(len(bars)), [_short(one.label, 2 * _LONGEST) for one in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        return figure


def to_svg(figure: Figure) -> str:
    """For a paper or a browser; text stays text."""
    text = io.StringIO()
    with _style():
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "fedward"})
    return text.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """For a paper; fonts are embedded."""
    content = io.BytesIO()
    with _style():
        figure.savefig(content, format="pdf", metadata={"CreationDate": None, "Creator": "fedward"})
    return content.getvalue()


def to_inline(svg: str, name: str) -> Markup:
    """The same SVG inside a page: in the page's colours, without a name space or an address.

    Args:
        svg: from `to_svg`.
        name: of the figure; ids begin with it, since a page has one of each. The page must have
            elements ``NAME-title`` and ``NAME-text`` that say what is drawn.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'id="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-text">'
    return Markup(head + text[text.index(">") + 1 :])  # noqa: S704 matplotlib has escaped its text


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # Names in other scripts are measured wrongly and shown rightly: text stays text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _heights(panels: Sequence[Panel], labels: Labels) -> tuple[float, float]:
    """Ends of the axis upward, with a little room."""
    points = [point for panel in panels for one in panel.series for point in one.points]
    values = [value for point in points for value in (point.value, *(point.ends or ()))]
    if labels.guessing is not None:
        values.append(labels.guessing)
    low, high = min(values), max(values)
    room = 0.05 * max(high - low, 0.05)
    return low - room, high + room


def _panel(axes: Axes, panel: Panel, scale: _Scale, lines: Sequence[str]) -> None:
    num = len(panel.series)
    for place, series in enumerate(panel.series):
        apart = (place - (num - 1) / 2) * 0.016 * max(scale.width, 0.5)
        _series(axes, series, lines.index(series.label), lambda e, by=apart: scale(e) + by)
    ticks = scale.ticks()
    axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
    margin = 0.07 * max(scale.width, 0.5)
    axes.set_xlim(scale(scale.epsilons[0]) - margin, scale(scale.epsilons[-1]) + margin)
    axes.set_xlabel("epsilon")
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if scale.finite and math.isinf(scale.epsilons[-1]):
        border = scale(math.inf) - scale.gap / 2
        axes.axvline(border, color=_MUTED, linewidth=0.6, linestyle=(0, (2, 3)))


def _series(axes: Axes, series: Series, number: int, place_of: Callable[[float], float]) -> None:
    """Points with their intervals; a band and a line where one epsilon follows another."""
    look = _look(series, number)
    finite = [point for point in series.points if math.isfinite(point.epsilon)]
    places = [place_of(point.epsilon) for point in finite]
    axes.plot(places, [point.value for point in finite], **look, marker="", zorder=2)
    for part in _banded(finite) if not series.reference else ():
        axes.fill_between(
            [place_of(point.epsilon) for point in part],
            [point.ends[0] for point in part if point.ends],
            [point.ends[1] for point in part if point.ends],
            color=look["color"],
            alpha=0.13,
            linewidth=0,
            zorder=1,
        )
    for before, after in pairwise(series.points):
        if math.isfinite(before.epsilon) and math.isinf(after.epsilon):
            axes.plot(
                [place_of(before.epsilon), place_of(after.epsilon)],
                [before.value, after.value],
                color=look["color"],
                linewidth=0.6,
                linestyle=":",
            )
    for point in series.points:
        place = place_of(point.epsilon)
        if point.ends is not None:
            axes.plot((place, place), point.ends, color=look["color"], linewidth=0.9, zorder=3)
        axes.plot(place, point.value, **_marker(series, number, point.leaks), zorder=4)


def _banded(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Stretches of two or more points that all have an interval."""
    part: list[Point] = []
    for point in [*points, None]:
        if point is not None and point.ends is not None:
            part.append(point)
            continue
        if len(part) > 1:
            yield part
        part = []


def _look(series: Series, number: int) -> dict[str, Any]:
    if series.reference:
        return {"color": _MUTED, "linewidth": 0.9, "linestyle": (0, (3, 2))}
    colour = _LINES[number % len(_LINES)]
    return {"color": colour, "linewidth": 1.5, "linestyle": _DASHES[number % len(_DASHES)]}


def _marker(series: Series, number: int, is_hollow: bool) -> dict[str, Any]:
    colour = _MUTED if series.reference else _LINES[number % len(_LINES)]
    return {
        "marker": "h" if series.reference else _MARKERS[number % len(_MARKERS)],
        "markersize": 4.8,
        "markeredgecolor": colour,
        "markerfacecolor": _PAPER if is_hollow else colour,
        "markeredgewidth": 1.0,
        "linestyle": "",
    }


def _key(figure: Figure, panels: Sequence[Panel], lines: Sequence[str], labels: Labels) -> None:
    """Below the panels: every line, and what is particular."""
    found = {one.label: one for panel in panels for one in panel.series}
    handles: list[Line2D] = []
    for place, name in enumerate(lines):
        look = _look(found[name], place) | _marker_only(found[name], place)
        handles.append(Line2D([], [], **look, label=_wrapped(name)))
    if any(point.leaks for one in found.values() for point in one.points):
        hollow: dict[str, Any] = {
            **_marker(Series(label="", points=(), reference=True), 0, True),
            "marker": "o",
        }
        words = "hollow: epsilon claimed only; the honest one is larger"
        handles.append(Line2D([], [], **hollow, label=_wrapped(words)))
    if labels.guessing is not None:
        handles.append(Line2D([], [], color=_MUTED, linewidth=0.6, label="guessing"))
    figure.legend(handles=handles, loc="outside lower left", ncols=1 if len(panels) == 1 else 2)


def _marker_only(series: Series, number: int) -> dict[str, Any]:
    return {k: v for k, v in _marker(series, number, False).items() if k.startswith("marker")}


def _wrapped(text: str) -> str:
    return textwrap.fill(_short(text, 2 * _LONGEST), _LONGEST)


def _short(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
