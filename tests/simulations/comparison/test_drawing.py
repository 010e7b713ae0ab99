"""Figures for papers and for the page."""

from __future__ import annotations

import math
import re

import pytest

from simulations.comparison.curves import Bar, Panel, Point, Series
from simulations.comparison.drawing import (
    Labels,
    draw_bars,
    draw_panels,
    to_inline,
    to_pdf,
    to_svg,
)

EPSILONS = (1.0, 6.0, 8.0, 12.0, 20.0, 60.0, math.inf)


def panel(*names: str, leaks: bool = False) -> Panel:
    return Panel(
        title="real images only",
        series=tuple(
            Series(
                label=name,
                points=tuple(
                    Point(
                        epsilon=epsilon,
                        value=0.5 + place / 50 + number / 10,
                        ends=(0.4, 0.6 + number / 10),
                        leaks=leaks and math.isfinite(epsilon),
                    )
                    for place, epsilon in enumerate(EPSILONS)
                ),
            )
            for number, name in enumerate(names)
        ),
    )


@pytest.fixture(scope="module")
def drawn() -> str:
    return to_svg(draw_panels([panel("federated", "<b>&$x$")], Labels(y="AUROC", guessing=0.5)))


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_text_stays_text_and_names_every_line(drawn: str) -> None:
    found = texts(drawn)
    assert {"AUROC", "epsilon", "none", "federated", "&lt;b&gt;&amp;$x$", "guessing"} <= set(found)
    assert "<b>" not in drawn


def test_ticks_that_would_overlap_are_left_out(drawn: str) -> None:
    found = set(texts(drawn))
    assert {"1", "60", "none"} <= found
    assert not {"6", "8"} <= found


def test_lines_differ_in_more_than_colour(drawn: str) -> None:
    wide = re.findall(r"stroke-dasharray: ([^;\"]+)[^\"]*stroke: (#\w+); stroke-width: 1.5", drawn)
    solid = re.findall(r"style=\"fill: none; stroke: (#\w+); stroke-width: 1.5;", drawn)
    assert wide or solid
    dashes = {colour: dash for dash, colour in wide} | dict.fromkeys(solid, "solid")
    assert len(dashes) == 2
    assert len(set(dashes.values())) == 2


def test_the_same_data_gives_the_same_files(drawn: str) -> None:
    again = draw_panels([panel("federated", "<b>&$x$")], Labels(y="AUROC", guessing=0.5))
    assert to_svg(again) == drawn
    assert to_pdf(again) == to_pdf(again)


def test_a_pdf_has_fonts_that_journals_take() -> None:
    pdf = to_pdf(draw_panels([panel("federated")], Labels(y="AUROC")))
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf
    assert b"/Type0" in pdf


def test_what_is_claimed_only_has_hollow_markers() -> None:
    held = to_svg(draw_panels([panel("federated")], Labels(y="AUROC")))
    claimed = to_svg(draw_panels([panel("federated", leaks=True)], Labels(y="AUROC")))
    hollow = "hollow: epsilon claimed only; the honest one"
    assert hollow in texts(claimed)
    assert hollow not in texts(held)
    assert claimed.count("fill: #ffffff; stroke: #0b5a8a") == len(EPSILONS) - 1
    assert "fill: #ffffff; stroke: #0b5a8a" not in held


def test_a_page_gets_its_own_colours_and_no_address(drawn: str) -> None:
    inline = to_inline(drawn, "auroc-0")
    assert inline.startswith("<svg viewBox=")
    assert "http" not in inline
    assert "xmlns=" not in inline
    assert "#0b5a8a" not in inline
    assert "var(--c0)" in inline
    assert 'aria-labelledby="auroc-0-title auroc-0-text"' in inline
    ids = re.findall(r'id="([^"]*)"', inline)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("auroc-0-") for name in ids)
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', inline)
    assert used
    assert {one or other for one, other in used} <= set(ids)


def test_several_panels_share_a_scale_and_one_key() -> None:
    both = texts(to_svg(draw_panels([panel("a", "b"), panel("a")], Labels(y="AUROC"))))
    assert both.count("real images only") == 2
    assert both.count("a") == 1


def test_panels_drawn_apart_keep_the_scale_they_share() -> None:
    low, high = panel("a"), panel("a", "b", "c")
    ticks = {"0.4", "0.5", "0.6", "0.7", "0.8"}
    alone = set(texts(to_svg(draw_panels([low], Labels(y="AUROC")))))
    among = set(texts(to_svg(draw_panels([low], Labels(y="AUROC"), among=[low, high]))))
    assert not ticks <= alone
    assert ticks <= among


@pytest.mark.parametrize("epsilons", [(8.0,), (math.inf,), (8.0, math.inf)])
def test_few_epsilons_are_drawn_too(epsilons: tuple[float, ...]) -> None:
    points = tuple(Point(epsilon=epsilon, value=0.6, ends=None) for epsilon in epsilons)
    one = Panel(title="x", series=(Series(label="a", points=points),))
    found = texts(to_svg(draw_panels([one], Labels(y="AUROC"))))
    assert [f"{epsilon:g}".replace("inf", "none") for epsilon in epsilons] == [
        text for text in found if text in {"8", "none"}
    ]


def test_differences_are_drawn_with_their_labels() -> None:
    bars = [
        Bar(label="federated \u2212 centralized", value=-0.1, ends=(-0.2, 0.0), p=0.1),
        Bar(label="local \u2212 federated", value=0.05, ends=None, p=None),
    ]
    found = texts(to_svg(draw_bars(bars, "difference in AUROC")))
    assert {bar.label for bar in bars} | {"difference in AUROC"} <= set(found)
