"""The figures of a comparison: what each shows in words, as data, for a paper and for the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from simulations.comparison import drawing
from simulations.comparison.curves import (
    Bar,
    Comparison,
    Panel,
    Point,
    bars,
    by_arm,
    by_group,
)
from simulations.comparison.drawing import Labels
from simulations.comparison.published import published
from simulations.comparison.sheet import file_name, to_csv
from simulations.comparison.sheets import columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Inline:
    """A part of a figure as it stands in the page: what is drawn, in words, and the drawing."""

    name: str
    title: str
    text: str
    svg: Markup = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One figure.

    Attributes:
        name: of its files, without the ending.
        svg: for a paper.
        pdf: likewise.
        csv: its data.
        parts: for the page, one for each panel.
    """

    name: str
    svg: str = field(repr=False)
    pdf: bytes = field(repr=False)
    csv: str = field(repr=False)
    parts: tuple[Inline, ...]


def pictures(comparison: Comparison) -> list[Picture]:
    """Every figure that there is something to draw for."""
    return list(_pictures(comparison))


def _pictures(comparison: Comparison) -> Iterator[Picture]:
    references = published(comparison["study"]["name"])
    main = by_arm(comparison, "auroc", references)
    if main:
        yield _curves("auroc", "AUROC against epsilon", main, Labels(y="AUROC", guessing=0.5))
    found = bars(comparison)
    if found:
        yield _forest(found)
    calibration = by_arm(comparison, "ece")
    if calibration:
        title = "Calibration error against epsilon"
        yield _curves("ece", title, calibration, Labels(y="ECE"))
    for column in columns(comparison):
        panels = by_group(comparison, column, "auroc")
        if panels:
            yield _curves(
                f"groups_{file_name(column)}",
                f"AUROC by {column} against epsilon",
                panels,
                Labels(y="AUROC", guessing=0.5),
            )


def _curves(name: str, title: str, panels: Sequence[Panel], labels: Labels) -> Picture:
    whole = drawing.draw_panels(panels, labels)
    svg = drawing.to_svg(whole)
    own = [svg]
    if len(panels) > 1:
        apart = (drawing.draw_panels([panel], labels, among=panels) for panel in panels)
        own = [drawing.to_svg(one) for one in apart]
    return Picture(
        name=name,
        svg=svg,
        pdf=drawing.to_pdf(whole),
        csv=to_csv(list(_rows(panels))),
        parts=tuple(
            Inline(
                name=f"{name}-{place}",
                title=f"{title}: {panel.title}",
                text=_told(panel),
                svg=drawing.to_inline(drawn, f"{name}-{place}"),
            )
            for place, (panel, drawn) in enumerate(zip(panels, own, strict=True))
        ),
    )


def _forest(found: Sequence[Bar]) -> Picture:
    figure = drawing.draw_bars(found, "difference in AUROC (first minus second)")
    svg = drawing.to_svg(figure)
    text = "; ".join(f"{one.label}: {one.value:+.3f}{_interval(one.ends)}" for one in found)
    part = Inline(
        name="differences-0",
        title="Differences in AUROC with 95 % intervals",
        text=f"{text}.",
        svg=drawing.to_inline(svg, "differences-0"),
    )
    rows = [
        {"difference": one.label, "value": one.value, **_ends(one.ends), "p_holm": one.p}
        for one in found
    ]
    return Picture(
        name="differences",
        svg=svg,
        pdf=drawing.to_pdf(figure),
        csv=to_csv(rows),
        parts=(part,),
    )


def _rows(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        for series in panel.series:
            for point in series.points:
                yield {
                    "panel": panel.title,
                    "line": series.label,
                    "epsilon": point.epsilon,
                    "value": point.value,
                    **_ends(point.ends),
                    "ends": "one standard deviation" if series.reference else "95 % interval",
                    "epsilon_holds": not point.leaks,
                }


def _told(panel: Panel) -> str:
    """What is drawn, in words."""
    lines = [f"{series.label}: {', '.join(map(_point, series.points))}" for series in panel.series]
    return f"{'; '.join(lines)}. The numbers are in the tables below and in the CSV files beside."


def _point(point: Point) -> str:
    at = f"epsilon {point.epsilon:g}" if math.isfinite(point.epsilon) else "without privacy"
    claimed = " (claimed only)" if point.leaks else ""
    return f"{at}{claimed} {point.value:.3f}{_interval(point.ends)}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})"


def _ends(ends: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = (None, None) if ends is None else ends
    return {"low": low, "high": high}
