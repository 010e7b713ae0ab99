"""``fedward audit run``: attacks on the released model, beside what each site claims."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import UsageError
from common.files import check_out, write_atomically
from simulations.audit.end import EXIT_INTERRUPTED, EXIT_PASSED, orderly_end

if TYPE_CHECKING:
    from client.audit.site_audit import SiteAudit, SiteClaim
    from client.audit.strength import Strength
    from simulations.audit.run import FinishedRun, RunAudit

_OF_ENGINE = (
    "epsilon_claimed",
    "epsilon_lower_bound",
    "confidence",
    "passes_claim",
    "delta",
    "unit",
    "accountant",
    "recipe",
)


def run(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run of fedward simulate.")],
    shadows: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Reference models of each site, an even number; 0: the loss alone.",
            show_default="at most 16, as many as five minutes allow",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of all lower bounds together.")] = 0.95,
    engine_file: Annotated[
        Path | None,
        typer.Option(
            "--engine",
            help="What fedward audit engine --json wrote, to stand beside.",
            show_default="engine.json in RUN_DIR, if it is there",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Membership inference against the released model of a run, at each site, by patient.

    Writes audit.json and audit.html into RUN_DIR, and the panel into its report.html. The study has
    to be where the run found it.
    """
    if shadows is not None and shadows % 2:
        raise UsageError(f"--shadows={shadows}: must be even; each pair halves the patients")
    if not 0.5 <= confidence < 1:
        raise UsageError(f"--confidence={confidence:g}: must be at least 0.5 and below 1")
    check_out("--json", json_file)
    if engine_file is None and (run_dir / "engine.json").is_file():
        engine_file = run_dir / "engine.json"
    engine = None if engine_file is None else _engine(engine_file)
    began = time.monotonic()
    try:
        with orderly_end():
            finished, found = _audited(run_dir, shadows, confidence)
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was written.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    result = _result(finished, found) | {"engine": engine, "seconds": time.monotonic() - began}
    _write(result, finished, json_file)
    if shadows is None and not found.num_shadows:
        typer.echo(_too_dear(found), err=True)
    for line in _lines(result):
        typer.echo(line)
    typer.echo(str(finished.run_dir.path / "audit.html"))
    if result["passes_claim"]:
        raise typer.Exit(EXIT_PASSED)


def _audited(run_dir: Path, shadows: int | None, confidence: float) -> tuple[FinishedRun, RunAudit]:
    from simulations.audit.run import FinishedRun, audit_run
    from simulations.progress_bar import ProgressBar

    finished = FinishedRun.open(run_dir)
    with ProgressBar() as bar:
        return finished, audit_run(
            finished, num_shadows=shadows, confidence=confidence, progress=bar
        )


def _too_dear(found: RunAudit) -> str:
    """Why there are no references though nobody asked for none."""
    minutes = 2 * len(found.sites) * (found.seconds_each or 0.0) / 60
    return (
        f"The loss alone was tried: with --shadows 2, reference models would take about "
        f"{minutes:.0f} minutes."
    )


def _engine(path: Path) -> dict[str, Any]:
    try:
        figures = json.loads(path.read_text())
        return {name: figures[name] for name in _OF_ENGINE}
    except OSError as error:
        raise UsageError(f"--engine={path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--engine={path}: not what fedward audit engine --json writes") from error


def _result(finished: FinishedRun, found: RunAudit) -> dict[str, Any]:
    """The figures, JSON-ready; an infinite epsilon is null."""
    from simulations.audit.panel import SCHEMA

    result = finished.result
    claims = [claim.epsilon for claim in found.claims.values()]
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "derived_from_patients": "without noise; public only where the study is",
        "run": {
            "title": result["title"],
            "weights_sha256": result["final"]["weights_sha256"],
            "study": result["study"]["name"],
            "public": result["study"]["public"],
            "rounds": finished.rounds,
            "noise_multiplier": finished.recipe.noise_multiplier,
            "sampling_rate": finished.recipe.sampling_rate,
        },
        "epsilon_claimed": _finite(max(claims)),
        "epsilon_lower_bound": max(_floor(one.proof.epsilon) for one in found.sites.values()),
        "confidence": found.confidence,
        "passes_claim": found.passes_claim,
        "shadows": found.num_shadows,
        "sites": {
            name: {
                "num_members": audit.num_members,
                "num_non_members": audit.num_others,
                "non_members": "own" if found.own_others[name] else "study",
                "claim": _claim(found.claims[name]),
                **_site(audit),
            }
            for name, audit in found.sites.items()
        },
    }


def _floor(epsilon: float) -> float:
    """A bound that JSON can hold: the largest that any number of patients could prove."""
    return min(epsilon, 1e3)


def _claim(claim: SiteClaim) -> dict[str, Any]:
    from client.audit.strength import RATES
    from common.privacy.accountants import ADJACENCY

    return {
        "epsilon": _finite(claim.epsilon),
        "delta": claim.delta,
        "unit": "patient",
        "accountant": claim.accountant,
        "adjacency": ADJACENCY,
        "tpr_bound_at_fpr": {str(fpr): claim.allowed(fpr) for fpr in RATES},
    }


def _site(audit: SiteAudit) -> dict[str, Any]:
    proof = audit.proof
    return {
        "attacks": {name: _strength(one) for name, one in audit.strengths.items()},
        "control": None if audit.control is None else _strength(audit.control),
        "proof": {
            "attack": proof.attack,
            "epsilon_lower_bound": _floor(proof.epsilon),
            "tpr_at_least": proof.rates.true_positive,
            "fpr_at_most": proof.rates.false_positive,
            "confidence": proof.confidence,
            "passes_claim": proof.passes_claim,
        },
    }


def _strength(one: Strength) -> dict[str, Any]:
    return {
        "auc": one.auc,
        "auc_ci95": list(one.interval),
        "above_chance": one.above_chance,
        "tpr_at_fpr": {
            str(point.fpr): {
                "tpr": point.tpr,
                "ci95": list(point.interval),
                "false_positives": point.false_positives,
            }
            for point in one.found
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(result: Mapping[str, Any], finished: FinishedRun, json_file: Path | None) -> None:
    """Into the run's folder and, if asked, elsewhere; each file whole or not at all."""
    from simulations.audit.evidence import write_pages
    from simulations.audit.panel import render

    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    mode = 0o644 if result["run"]["public"] is not None else 0o600
    folder = finished.run_dir.path
    files = {folder / "audit.json": text, folder / "audit.html": render(result)}
    if json_file is not None:
        files[json_file] = text
    works = {path: partial(write_atomically, path, text, mode=mode) for path, text in files.items()}
    works[finished.run_dir.report] = partial(write_pages, finished.run_dir, finished.result)
    for path, work in works.items():
        try:
            work()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    for name, site in result["sites"].items():
        claim, proof = site["claim"], site["proof"]
        epsilon = claim["epsilon"]
        claimed = "infinite" if epsilon is None else f"{math.ceil(epsilon * 1e3) / 1e3:.3f}"
        yield (
            f"{name}: {site['num_members']} members, {site['num_non_members']} non-members "
            f"({'its own' if site['non_members'] == 'own' else 'of the whole study'}); claimed "
            f"epsilon {claimed}, proved at least "
            f"{math.floor(proof['epsilon_lower_bound'] * 1e3) / 1e3:.3f}"
        )
        rows = dict(site["attacks"])
        if site["control"] is not None:
            rows["control, no member was trained on"] = site["control"]
        for attack, one in rows.items():
            low, high = one["auc_ci95"]
            found = "; ".join(
                f"{100 * point['tpr']:.1f} % at {100 * float(fpr):g} %"
                for fpr, point in one["tpr_at_fpr"].items()
            )
            yield f"  {attack}: AUC {one['auc']:.3f} ({low:.3f} to {high:.3f}); finds {found}"
    if result["passes_claim"]:
        yield "THE CLAIM IS WRONG: an attack finds more members than it allows."
    yield f"{result['seconds']:.0f} s"
