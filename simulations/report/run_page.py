"""The page of a run: `result.json` in, one self-contained HTML file out.

The page shows nothing that `result.json` does not hold (docs/result.md), so it may go wherever
that file may go; with an audit of the run in it, only where that may go. Epsilons and
true-positive-rate bounds are rounded up, never down.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FunctionLoader, StrictUndefined

from common.errors import UsageError
from common.files import write_atomically
from simulations.report.chart import charts, interval_axis, reliability_chart
from simulations.report.page import Page, Result
from simulations.report.wording import (
    decimals,
    doubt,
    estimate,
    intervals,
    plain,
    round_up,
    unbroken,
)

if TYPE_CHECKING:
    from simulations.audit.evidence import Evidence

SCHEMA = "fedward.result/1"
_REFUTED = (
    "The epsilon that is claimed for it is refuted: an audit found more than it allows, so it does "
    "not hold."
)


def render(result: Result, evidence: Evidence | None = None) -> str:
    """The HTML page of one run, as a string.

    Needs no network, no script and no other file. Fields that a run did not reach (a failed run has
    no ``final``) are said to be missing.

    Args:
        result: the content of `result.json`.
        evidence: what was measured of the run's privacy, if anything was.

    Raises:
        UsageError: the schema is not one that this version reads.
    """
    if result.get("schema") != SCHEMA:
        raise UsageError(
            f"schema={result.get('schema')!r}: this version writes reports for {SCHEMA!r} only"
        )
    page = Page(result)
    template = pages().get_template("report.html.jinja")
    return template.render(
        page=page,
        answer=answer(result, refuted=bool(evidence and evidence.refuted)),
        charts=charts(page),
        reliability=reliability_chart(page),
        axis=interval_axis(page),
        audit=evidence and evidence.audit,
        inversion=evidence and evidence.inversion,
    )


def pages() -> Environment:
    """The templates of this package, which share a style; all output is escaped."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "up": round_up,
        "plain": plain,
        "decimals": decimals,
        "estimate": estimate,
        "doubt": doubt,
        "intervals": intervals,
        "unbroken": unbroken,
    }
    return environment


def _source(name: str) -> str:
    return (files("simulations").joinpath("templates", name)).read_text(encoding="utf-8")


def write(result: Result, path: Path, evidence: Evidence | None = None) -> None:
    """Write the page to ``path``, whole or not at all; for its owner alone where evidence asks it.

    Raises:
        UsageError: as `render`.
        OSError: the folder cannot be written.
    """
    mode = 0o644 if evidence is None else evidence.mode
    write_atomically(path, render(result, evidence), mode=mode)


def answer(result: Result, *, refuted: bool = False) -> str:
    """What came out, in two sentences: how good the model is, and how private.

    Never calls a run private unless a finite epsilon holds for every hospital, and no audit has
    ``refuted`` what is claimed.
    """
    page = Page(result)
    return f"{_utility(page)} {_REFUTED if refuted else _privacy(page)}"


def _utility(page: Page) -> str:
    trained = sum(site.rounds_trained > 0 for site in page.sites)
    who = f"{trained or 'no'} simulated hospital{'' if trained in {0, 1} else 's'}"
    on = "generated phantoms" if page.phantom else f"the study {page.study}"
    if page.test is None:
        ended = "failed" if page.state == "failed" else "ended early"
        return f"The run {ended} and left no final model; {who} had trained on {on}."
    low, high = page.test["auroc_ci95"]
    interval = f"95\u00a0% CI {decimals(low, 2)} to {decimals(high, 2)}"
    metric = f"mean test AUROC over {page.several}" if page.several else "test AUROC"
    figure = f"{metric} {decimals(page.test['auroc'], 2)} ({interval})"
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
    sentence = (
        f"Each hospital's {page.persons} are protected at epsilon ≤ {round_up(page.epsilon)} "
        f"({terms}){scope}"
    )
    return f"{sentence}{_trust(page)}."


def _trust(page: Page) -> str:
    """What the figure rests on beside the hospital itself, and what holds without it."""
    shared = page.shared_noise
    if shared is None:
        return ""
    alone = page.epsilon_alone
    figure = "without any bound" if alone is None else f"at epsilon ≤ {round_up(alone)}"
    return (
        f", provided that at most {shared['max_colluders']} of {shared['num_sites']} hospitals "
        f"collude with the server; if no other hospital can be trusted, {figure}"
    )
