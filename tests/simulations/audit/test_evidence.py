"""What was measured of a run's privacy stands in its pages, and nowhere where it may not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UsageError
from simulations.audit.evidence import Evidence, write_pages
from simulations.audit.inversion_page import InversionPage, Picture, read_inversion, with_pictures
from simulations.report.run_page import render
from simulations.run_dir import RunDir

DIGEST = "9f2c" * 16
RESULT: dict[str, Any] = {
    "schema": "fedward.result/1",
    "title": "of a test",
    "state": "completed",
    "rounds": [],
    "final": {
        "round": 3,
        "weights_sha256": DIGEST,
        "test": {
            "auroc": 0.8123,
            "auroc_ci95": [0.7612, 0.8571],
            "auprc_malignant": 0.7934,
            "auprc_benign": 0.8217,
            "num_patients": 200,
            "num_images": 412,
        },
    },
    "privacy": {
        "private": True,
        "mechanism": "dp_sgd",
        "unit": "patient",
        "accountant": "pld",
        "delta": 1e-5,
        "epsilon_federation": 7.97,
        "sites": {"hospital-1": {"num_patients": 200, "epsilon": 7.97, "epsilon_budget": 8.0}},
    },
}
ABOUT_CLAIM = "protected at epsilon ≤ 7.97"


def audit(bound: float = 0.4, public: str | None = "phantoms") -> dict[str, Any]:
    """As ``fedward audit run`` writes it."""
    attack = {
        "auc": 0.61,
        "auc_ci95": [0.55, 0.67],
        "above_chance": True,
        "tpr_at_fpr": {"0.01": {"tpr": 0.2, "ci95": [0.1, 0.3], "false_positives": 1}},
    }
    return {
        "schema": "fedward.audit/1",
        "created": "2026-01-01T00:00:00Z",
        "run": {
            "title": "a run",
            "weights_sha256": DIGEST,
            "public": public,
            "noise_multiplier": 1.2,
            "sampling_rate": 0.25,
        },
        "confidence": 0.95,
        "shadows": 2,
        "sites": {
            "hospital-1": {
                "num_members": 200,
                "num_non_members": 100,
                "non_members": "own",
                "claim": {
                    "epsilon": 7.97,
                    "delta": 1e-5,
                    "unit": "patient",
                    "accountant": "pld",
                    "adjacency": "zero-out",
                    "tpr_bound_at_fpr": {"0.01": 0.4567},
                },
                "attacks": {"loss": attack},
                "control": attack,
                "proof": {
                    "attack": "loss",
                    "epsilon_lower_bound": bound,
                    "passes_claim": bound > 7.97,
                },
            }
        },
        "engine": None,
    }


def pictures(public: str | None = "drawn by a formula") -> InversionPage:
    original = np.linspace(0, 1, 64).reshape(8, 8)
    return InversionPage(
        rows=[
            [
                Picture(title="in the hospital", pixels=original),
                Picture.beside(original, "no privacy", original.copy()),
                Picture.beside(original, "with privacy", 1 - original),
            ]
        ],
        target="chosen for epsilon 8",
        noise_multiplier=1.25,
        epsilon=3.4375,
        delta=1e-5,
        model="vit_tiny",
        source="a study",
        public=public,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., RunDir]:
    """Makes the folder of a run in which these files lie."""

    def make(**files: Any) -> RunDir:
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "weights.safetensors").touch()
        return RunDir(path=tmp_path)

    return make


def pages(run_dir: RunDir) -> tuple[str, str]:
    write_pages(run_dir, RESULT)
    return plain(run_dir.report.read_text()), run_dir.model_card.read_text()


def plain(page: str) -> str:
    return page.replace("\u00a0", " ")


def test_without_evidence_the_page_is_that_of_the_result(folder: Callable[..., RunDir]) -> None:
    page, card = pages(folder())
    assert page == plain(render(RESULT))
    assert "Claimed and measured" not in page
    assert ABOUT_CLAIM in page
    assert "Refuted" not in card


def test_an_audit_stands_in_the_report(folder: Callable[..., RunDir]) -> None:
    page, card = pages(folder(audit=audit()))
    assert page.count('id="audit"') == page.count('href="#audit"') == 1
    assert "at least 0.40" in page
    assert "the best reaches AUC 0.61 (0.55 to 0.67)" in page
    assert "stroke: var(--bad" not in page
    assert ABOUT_CLAIM in page
    assert "Refuted" not in card


def test_a_refuted_claim_is_not_made_again(folder: Callable[..., RunDir]) -> None:
    page, card = pages(folder(audit=audit(bound=9.3)))
    assert "stroke: var(--bad" in page  # the red line
    assert "⚠ Claim of privacy refuted" in page
    assert "Differentially private" not in page
    assert ABOUT_CLAIM not in page
    assert "and is refuted" in page
    assert card.splitlines()[2].startswith("**Refuted.**")


@pytest.mark.parametrize(("public", "mode"), [("phantoms", 0o644), (None, 0o600)])
def test_a_report_may_go_where_its_audit_may(
    folder: Callable[..., RunDir], public: str | None, mode: int
) -> None:
    run_dir = folder(audit=audit(public=public))
    page, _ = pages(run_dir)
    assert run_dir.report.stat().st_mode & 0o777 == mode
    assert ("Stays where the study may be" in page) is (public is None)


def test_an_audit_of_another_model_is_refused(folder: Callable[..., RunDir]) -> None:
    other = audit()
    other["run"]["weights_sha256"] = "0" * 64
    run_dir = folder(audit=other)
    with pytest.raises(UsageError, match="of another model") as caught:
        write_pages(run_dir, RESULT)
    assert "\n" not in str(caught.value)
    assert not run_dir.report.exists()


def test_pictures_stand_in_the_report(folder: Callable[..., RunDir]) -> None:
    page, _ = pages(folder(inversion=with_pictures(pictures())))
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "noise multiplier 1.25, chosen for epsilon 8" in page
    assert "costs epsilon 3.44" in page  # rounded up


def test_pictures_come_back_as_they_were(folder: Callable[..., RunDir]) -> None:
    made = pictures()
    found = read_inversion(folder(inversion=with_pictures(made)).path)
    assert found is not None
    assert [[one.likeness for one in row] for row in found.rows] == [
        [one.likeness for one in row] for row in made.rows
    ]
    for one, other in zip(found.rows[0], made.rows[0], strict=True):
        assert one.pixels == pytest.approx(other.pixels, abs=0.5 / 255 + 1e-9)
        assert one.source == other.source
    assert (found.answer, found.epsilon, found.public) == (made.answer, made.epsilon, made.public)


def broken(**changes: Any) -> dict[str, Any]:
    return with_pictures(pictures()) | changes


@pytest.mark.parametrize(
    "content",
    [
        [],
        broken(schema="fedward.inversion/9"),
        broken(public=None),
        broken(pictures=[]),
        broken(pictures=[[{"title": "a", "png": "bm8=", "ssim": None, "psnr_db": None}] * 4]),
        broken(pictures=[[{"title": "a", "png": '"><b>', "ssim": None, "psnr_db": None}] * 4]),
        broken(noise_multiplier="<b>"),
    ],
    ids=["empty", "schema", "private", "none", "no picture", "markup", "no number"],
)
def test_broken_pictures_are_one_line(folder: Callable[..., RunDir], content: Any) -> None:
    with pytest.raises(UsageError, match=r"inversion\.json") as caught:
        write_pages(folder(inversion=content), RESULT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(
    folder: Callable[..., RunDir], axe: Callable[..., list[Any]], dark: bool
) -> None:
    found = {"audit": audit(bound=9.3, public=None), "inversion": with_pictures(pictures())}
    run_dir = folder(**found)
    write_pages(run_dir, RESULT)
    assert axe(run_dir.report, dark=dark) == []


def test_a_browser_shows_the_page_without_requests(
    folder: Callable[..., RunDir], browser: Callable[[Path], Any]
) -> None:
    run_dir = folder(audit=audit(), inversion=with_pictures(pictures()))
    write_pages(run_dir, RESULT)
    visit = browser(run_dir.report)
    assert (visit.console, visit.requests) == ([], [])


def test_evidence_of_an_empty_folder_is_none(tmp_path: Path) -> None:
    assert Evidence.of(tmp_path, RESULT) == Evidence()
