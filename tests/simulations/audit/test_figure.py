"""Several audits in one figure: every hospital under its own claim, and nothing out of place."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import UsageError
from simulations.audit.figure import Figure, figure_of, render
from simulations.cli import app

Make = Callable[..., Path]
SVG = "{http://www.w3.org/2000/svg}"


def strength(auc: float) -> dict[str, Any]:
    return {
        "auc": auc,
        "auc_ci95": [auc - 0.06, auc + 0.06],
        "above_chance": auc > 0.56,
        "tpr_at_fpr": {},
    }


@pytest.fixture
def audited(tmp_path: Path) -> Make:
    """Makes the folder of an audited run."""

    def make(
        folder: str,
        epsilon: float | None,
        public: str | None = "phantoms",
        **sites: float,
    ) -> Path:
        claim = {"epsilon": epsilon, "delta": 1e-5, "unit": "patient", "accountant": "pld"}
        audit = {
            "schema": "fedward.audit/1",
            "created": "2026-01-01T00:00:00Z",
            "run": {"title": "a run", "weights_sha256": "0" * 64, "public": public},
            "confidence": 0.95,
            "shadows": 2,
            "engine": {
                "epsilon_claimed": 3.0,
                "epsilon_lower_bound": 2.0,
                "passes_claim": False,
                "recipe": {"noise_multiplier": 1.0, "sampling_rate": 1.0},
            },
            "sites": {
                name: {
                    "num_members": 20,
                    "num_non_members": 30,
                    "non_members": "own",
                    "claim": claim | {"adjacency": "zero-out", "tpr_bound_at_fpr": {}},
                    "attacks": {"loss": strength(auc), "LiRA": strength(auc + 0.02)},
                    "control": strength(0.5),
                    "proof": {"attack": "loss", "epsilon_lower_bound": 0.1, "passes_claim": False},
                }
                for name, auc in sites.items()
            },
        }
        audit["run"] |= {"noise_multiplier": 1.0, "sampling_rate": 1.0}
        path = tmp_path / folder
        path.mkdir()
        (path / "audit.json").write_text(json.dumps(audit))
        return path

    return make


def drawn(figure: Figure) -> list[tuple[str, list[str]]]:
    return [(group.title, [row.label for row in group.rows]) for group in figure.groups]


def parsed(figure: Figure) -> ET.Element:
    return ET.fromstring(render(figure))  # noqa: S314 this program has just written it


def test_hospitals_stand_under_their_own_claim(audited: Make) -> None:
    private = audited("private", 7.9912, a=0.52, b=0.55)
    figure = figure_of([private, audited("open", None, a=0.8), audited("more", 1.2, a=0.5)])
    assert drawn(figure) == [
        ("no privacy", ["a"]),
        ("epsilon 8.00", ["a", "b"]),  # rounded up
        ("epsilon 1.20", ["a"]),
    ]
    assert figure.attacks == ["loss", "LiRA", "control"]
    first = figure.groups[0].rows[0].marks
    assert [(mark.attack, round(mark.auc, 3)) for mark in first] == [
        ("loss", 0.8),
        ("LiRA", 0.82),
        ("control", 0.5),
    ]
    places = [mark.y for group in figure.groups for row in group.rows for mark in row.marks]
    assert places == sorted(set(places))
    assert figure.height > places[-1]


def test_the_scale_holds_every_interval(audited: Make) -> None:
    figure = figure_of([audited("run", 8.0, a=0.33, b=0.93)])
    assert (figure.low, figure.high) == (0.2, 1.1)
    assert (figure.x(figure.low), figure.x(figure.high)) == (190.0, 700.0)
    assert figure.ticks[0] == 0.2
    assert 0.5 in figure.ticks
    assert (
        figure_of([audited("chance", 8.0, a=0.5)]).description == "epsilon 8.00: AUC 0.50 to 0.52."
    )


def test_runs_with_the_same_hospital_are_told_apart(audited: Make) -> None:
    figure = figure_of([audited("one", 8.0, a=0.5), audited("two", 8.0, a=0.5, b=0.5)])
    assert drawn(figure) == [("epsilon 8.00", ["a, one", "a, two", "b"])]


def test_the_picture_draws_each_mark_once(audited: Make) -> None:
    figure = figure_of([audited("one", 8.0, a=0.6), audited("two", None, a=0.7)])
    root = parsed(figure)
    circles = [one.get("cx") for one in root.iter(f"{SVG}circle")]
    marks = [mark for group in figure.groups for row in group.rows for mark in row.marks]
    assert circles[3:] == [str(figure.x(mark.auc)) for mark in marks]  # three are the key's
    words = {one.text for one in root.iter(f"{SVG}text")}
    assert {"no privacy", "epsilon 8.00", "0.5: guessing", "LiRA"} <= words


def test_planted_markup_stays_text(audited: Make) -> None:
    figure = figure_of([audited("run", 8.0, **{"<script>alert(1)</script>": 0.5})])
    root = parsed(figure)
    assert not list(root.iter(f"{SVG}script"))


@pytest.mark.parametrize(("public", "mode"), [("phantoms", 0o644), (None, 0o600)])
def test_the_command_writes_it(
    audited: Make, tmp_path: Path, public: str | None, mode: int
) -> None:
    out = tmp_path / "figure.svg"
    paths = [audited("one", 8.0, a=0.6), audited("two", None, public, a=0.7)]
    result = CliRunner().invoke(app, ["audit", "figure", *map(str, paths), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_text() == render(figure_of(paths))
    assert out.stat().st_mode & 0o777 == mode


def test_a_folder_without_an_audit_is_one_line(audited: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no audit of a run") as caught:
        figure_of([audited("run", 8.0, a=0.5), tmp_path])
    assert "\n" not in str(caught.value)
    result = CliRunner().invoke(
        app, ["audit", "figure", str(tmp_path / "run"), "--out", str(tmp_path / "no" / "f.svg")]
    )
    assert isinstance(result.exception, UsageError)
