"""The page of a comparison: what it says, and that a browser and a screen reader are content."""

from __future__ import annotations

import copy
import csv
import html
import io
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from simulations.comparison.page import ComparisonPage, render, write

Make = Callable[..., dict[str, Any]]
Browser = Callable[[Path], Any]
Axe = Callable[..., list[dict[str, Any]]]


class Outline(HTMLParser):
    """Elements with their attributes, and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._quiet = False
        self.feed(page)
        self.text = " ".join(" ".join(self.pieces).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._quiet = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(comparison: dict[str, Any]) -> str:
    return render(ComparisonPage.of(comparison))


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture(scope="module")
def made(make_comparison: Make) -> dict[str, Any]:
    return make_comparison()


@pytest.fixture(scope="module")
def small(make_comparison: Make) -> dict[str, Any]:
    """One seed and one epsilon on a study that nobody has published on: quickly drawn."""
    return make_comparison("nih", epsilons=(8.0, math.inf), augments=("none",), seeds=(1,))


@pytest.fixture(scope="module")
def written(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with everything beside it."""
    return write(made, tmp_path_factory.mktemp("comparison"))


@pytest.fixture
def comparison(made: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(made)


def nothing_done(comparison: dict[str, Any]) -> dict[str, Any]:
    """What is left where every trial failed."""
    problem = {"trial": "federated epsilon 8 seed 1", "name": "x", "problem": "no <room>"}
    return comparison | {
        "cells": [],
        "differences": [],
        "checks": [],
        "equal": None,
        "sources": [],
        "versions": {},
        "correlations": {"labels": [], "spd_and_epsilon": []},
        "missing": [problem],
    }


def test_the_files_beside_the_page_hold_the_figures(
    comparison: dict[str, Any], written: Path
) -> None:
    assert written.name == "comparison.html"
    tmp_path = written.parent
    cells = rows(tmp_path / "tables" / "auroc.csv")
    assert len(cells) == len(comparison["cells"]) == 18
    for row, cell in zip(cells, comparison["cells"], strict=True):
        told = cell["figures"]["auroc"]["patients_and_seeds"]
        assert float(row["auroc"]) == told["value"]
        assert [float(row["auroc_low"]), float(row["auroc_high"])] == told["ci95"]
        assert row["epsilon"] == ("inf" if cell["epsilon"] is None else str(cell["epsilon"]))
    differences = rows(tmp_path / "tables" / "differences.csv")
    assert [float(row["p_holm"]) for row in differences] == [
        one["p_holm"] for one in comparison["differences"]
    ]
    drawn = rows(tmp_path / "figures" / "auroc.csv")
    own = [row for row in drawn if not row["line"].startswith("published")]
    assert sorted(float(row["value"]) for row in own) == sorted(
        cell["figures"]["auroc"]["patients"]["value"] for cell in comparison["cells"]
    )
    assert {row["epsilon_holds"] for row in own if "mix" in row["panel"]} == {"True", "False"}
    assert {row["epsilon_holds"] for row in own if "mix" not in row["panel"]} == {"True"}
    published = {float(row["value"]) for row in drawn if row["line"].startswith("published")}
    assert {0.525, 0.778, 0.617} <= published
    for name in ("auroc", "differences", "ece", "groups_sex"):
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<text" in (tmp_path / "figures" / f"{name}.svg").read_text()
    groups = rows(tmp_path / "tables" / "groups_age.csv")
    old = [row for row in groups if row["group"] == ">=60"]
    assert {row["auroc_unsaid"] for row in old} == {"too_few_patients"}
    assert {row["auroc"] for row in old} == {""}


def test_what_the_page_says(comparison: dict[str, Any], written: Path) -> None:
    text = Outline(written.read_text(encoding="utf-8")).text
    assert text.count("too few patients to say") > 10
    assert "NOT private: something made without privacy from these patients was used" in text
    assert "Epsilon is claimed only: centralized with mix, federated with mix" in text
    assert "Osuala et al. 2024" in text
    assert "Whoever published the models of several trials" in text
    assert "Noise from seeds protects nobody" in text
    assert "Synthetic images" in text
    assert "made WITHOUT privacy" in text
    for cell in comparison["cells"]:
        low, high = cell["figures"]["auroc"]["patients_and_seeds"]["ci95"]
        value = cell["figures"]["auroc"]["patients"]["value"]
        assert f"{value:.3f} ({low:.3f} to {high:.3f})" in text
    for check in comparison["checks"]:
        words = "Holds." if check["holds"] else "Does not hold."
        assert f"{words} {check['says']}" in text


def test_another_study_has_no_published_figures(small: dict[str, Any]) -> None:
    text = page_of(small)
    assert "Osuala" not in text
    assert "Published" not in text
    assert "published:" not in text
    text = Outline(text).text
    assert "There is one seed" in text
    assert "they speak of these very models" in text
    assert "Phantoms, not patients." not in text


def test_phantoms_and_missing_trials_are_named_at_the_top(small: dict[str, Any]) -> None:
    comparison = copy.deepcopy(small)
    comparison["study"]["name"] = "phantom"
    comparison["missing"] = [{"trial": "local seed 2", "name": "x", "problem": "no <room>"}]
    text = Outline(page_of(comparison)).text
    assert "Phantoms, not patients." in text
    assert "1 of 8 trials have no result" in text
    assert "Without a result: local seed 2: no <room>" in text


@pytest.mark.parametrize("change", [dict, nothing_done])
def test_page_is_whole_and_readable_without_eyes(
    comparison: dict[str, Any],
    written: Path,
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    page = written.read_text(encoding="utf-8")
    if change is nothing_done:
        page = page_of(change(comparison))
    outline = Outline(page)
    assert outline.all("html") == [{"lang": "en"}]
    assert len(outline.all("h1")) == len(outline.all("main")) == 1
    assert len(outline.all("table")) == len(outline.all("caption"))
    assert all(cell.get("scope") in {"col", "row"} for cell in outline.all("th"))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [one for one in outline.all("svg") if one.get("aria-hidden") != "true"]
    assert all(set((one["aria-labelledby"] or "").split()) <= set(ids) for one in drawings)
    assert {one["role"] for one in drawings} <= {"img"}
    assert len(drawings) == (0 if change is nothing_done else 2 + 1 + 2 + 3 + 3)
    assert all(one["aria-labelledby"] in ids for one in outline.all("section"))
    links = {link["href"] or "" for link in outline.all("a")}
    assert {link for link in links if link.startswith("#")} <= {f"#{name}" for name in ids}
    assert all(re.fullmatch(r"#\w+|trials/[\w.-]+/report\.html", link) for link in links)
    assert not outline.all("script")
    assert not any("src" in attributes for _, attributes in outline.elements)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg'", "")  # the icon's
    assert "https://" not in page


def test_planted_markup_stays_text(small: dict[str, Any]) -> None:
    plain = Outline(page_of(small))
    text = '"><script>alert(1)</script>$x_$'
    planted = copy.deepcopy(small)
    planted |= {"title": text, "versions": {text: text}}
    planted["study"] |= {"name": text, "sites": {text: 4}}
    for cell in planted["cells"]:
        cell["arm"] = text if cell["arm"] == "centralized" else cell["arm"]
        cell["groups"] = {text: cell["groups"]["sex"], "age": cell["groups"]["age"]}
        for group in cell["groups"][text]["groups"]:
            group["value"] = text if group["value"] == "F" else group["value"]
    outline = Outline(page_of(planted))
    assert not outline.all("script")
    assert outline.text.count(text) > 10
    assert len(outline.all("table")) == len(plain.all("table"))


def test_an_unknown_schema_is_refused_and_nothing_is_written(
    comparison: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"fedward\.comparison/9"):
        write(comparison | {"schema": "fedward.comparison/9"}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_page_opens_silently_in_a_browser(browser: Browser, written: Path) -> None:
    met = browser(written)
    assert met.console == []
    assert met.requests == []
    assert "Noise from seeds protects nobody" in met.dom


def test_nothing_sticks_out_of_a_telephone(browser: Browser, written: Path, tmp_path: Path) -> None:
    title = "a_title_that_nobody_can_break_because_it_has_no_spaces_in_it_at_all"
    page = written.read_text(encoding="utf-8")
    assert "<h1>made up</h1>" in page
    page = html.escape(page.replace("<h1>made up</h1>", f"<h1>{title}</h1>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe width="360" height="800" srcdoc="{page}" '
        'onload="const page = this.contentDocument.documentElement; document.title = '
        "'widths ' + page.clientWidth + ' ' + page.scrollWidth\"></iframe>",
        encoding="utf-8",
    )
    title = Outline(browser(frame).dom).text
    _, visible, needed = title[title.index("widths ") :].split()[:3]
    assert int(visible) > 300
    assert int(needed) <= int(visible)


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(axe: Axe, written: Path, dark: bool) -> None:
    assert axe(written, dark=dark) == []


def test_axe_sees_planted_faults(axe: Axe, written: Path, tmp_path: Path) -> None:
    text = written.read_text(encoding="utf-8")
    text = text.replace(".terms { color: var(--muted)", ".terms { color: #bbb").replace(
        ' role="img" aria-labelledby="auroc-0-title auroc-0-text"', ' role="img"'
    )
    page = tmp_path / "planted.html"
    page.write_text(text, encoding="utf-8")
    assert {one["id"] for one in axe(page, dark=False)} == {"color-contrast", "svg-img-alt"}
