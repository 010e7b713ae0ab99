"""The panel of measured beside claimed privacy: `audit.json` as a template reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UsageError
from simulations.report.run_page import pages
from simulations.report.wording import round_up

SCHEMA = "fedward.audit/1"

_WIDTH, _LEFT, _RIGHT = 220.0, 8.0, 212.0
_CHANCE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackRow:
    """One attack at one site.

    Attributes:
        name: of the attack.
        auc: area under the ROC curve.
        low: of its 95 % interval.
        high: of it.
        found: for each false-positive rate, the share of members found, with its interval.
        above_chance: whether guessing does worse.
    """

    name: str
    auc: float
    low: float
    high: float
    found: Sequence[tuple[float, float, float]]
    above_chance: bool

    @property
    def words(self) -> str:
        """What the figures say."""
        return "above chance" if self.above_chance else "not above chance"

    def x(self, auc: float) -> float:
        """Where an AUC stands on a scale from 0 to 1."""
        return round(_LEFT + auc * (_RIGHT - _LEFT), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauge:
    """A claim and a lower bound on one scale.

    Attributes:
        name: whose.
        claimed: epsilon; none is claimed where it is ``None``.
        bound: lower bound.
        passes: whether the claim is refuted.
        scale: the epsilon at the right end.
        what: who was looked at, in words.
        by: what proved the bound.
    """

    name: str
    claimed: float | None
    bound: float
    passes: bool
    scale: float
    what: str
    by: str

    @property
    def claim_words(self) -> str:
        """The claim, never shown smaller than it is."""
        return "infinite" if self.claimed is None else f"at most {round_up(self.claimed)}"

    @property
    def bound_words(self) -> str:
        """The bound, never shown larger than it is."""
        return f"at least {math.floor(self.bound * 100) / 100:.2f}"

    @property
    def verdict(self) -> str:
        """What the two say together."""
        if self.passes:
            return "the claim is refuted"
        if self.claimed is None:
            return "nothing is claimed"
        return "not refuted"

    def x(self, epsilon: float) -> float:
        """Where ``epsilon`` stands; what is off the scale stands at its end."""
        return round(_LEFT + min(1.0, epsilon / self.scale) * (_RIGHT - _LEFT), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Attacks at one site.

    Attributes:
        name: of the site.
        members: patients trained on.
        others: patients who were not.
        own: whether these are the site's own.
        rows: the attacks.
        control: the same where no member was trained on.
        allowed: what the claim allows to find, by false-positive rate.
    """

    name: str
    members: int
    others: int
    own: bool
    rows: Sequence[AttackRow]
    control: AttackRow | None
    allowed: Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """All that the template shows (private where the study is).

    Attributes:
        gauges: claims and bounds: of the engine, if it was audited, then of each site.
        sites: attacks at each.
        rates: false-positive rates.
        passes: whether some claim is refuted.
        confidence: of the bounds of the sites together.
        shadows: reference models of each site.
        terms: of the claims.
        created: when the audit was made.
        title: of the run.
        other_recipe: whether the engine was audited with other noise or sampling.
        weights_sha256: of the model under audit.
        public: whether anyone may see these figures.
    """

    gauges: Sequence[Gauge]
    sites: Sequence[Site]
    rates: Sequence[float]
    passes: bool
    confidence: float
    shadows: int
    terms: str
    created: str
    title: str
    other_recipe: bool
    weights_sha256: str
    public: bool
    width: float = field(default=_WIDTH)

    @property
    def strongest(self) -> AttackRow:
        """The attack with the largest AUC of all sites."""
        return max((row for site in self.sites for row in site.rows), key=lambda row: row.auc)

    @property
    def num_above(self) -> int:
        """At how many sites some attack is above chance."""
        return sum(any(row.above_chance for row in site.rows) for site in self.sites)

    @property
    def answer(self) -> str:
        """What came out, in two sentences."""
        best, num_sites = self.strongest, len(self.sites)
        where = f"at {self.num_above} of {num_sites} hospital{'' if num_sites == 1 else 's'}"
        attacks = (
            f"Attacks on the released model tell who was trained on better than guessing {where}: "
            f"the best reaches AUC {best.auc:.2f} ({best.low:.2f} to {best.high:.2f})."
            if self.num_above
            else "No attack on the released model tells better than guessing who was trained on."
        )
        if self.passes:
            return f"{attacks} What they prove passes a claim: that claim is wrong."
        if all(gauge.claimed is None for gauge in self.gauges):
            return f"{attacks} No epsilon is claimed for this run."
        return f"{attacks} What they prove does not pass what is claimed."


def panel(audit: Mapping[str, Any]) -> Panel:
    """What the template ``audit_panel.html.jinja`` shows of the content of ``audit.json``.

    Raises:
        UsageError: the schema is not one that this version reads.
    """
    if audit.get("schema") != SCHEMA:
        raise UsageError(f"schema={audit.get('schema')!r}: this version reads {SCHEMA!r} only")
    sites: Mapping[str, Any] = audit["sites"]
    first = next(iter(sites.values()))["claim"]
    return Panel(
        gauges=_gauges(audit),
        sites=[_site(name, site) for name, site in sites.items()],
        rates=[float(rate) for rate in first["tpr_bound_at_fpr"]],
        passes=any(gauge.passes for gauge in _gauges(audit)),
        confidence=audit["confidence"],
        shadows=audit["shadows"],
        terms=(
            f"delta {round_up(first['delta'])}, {first['unit']} level, {first['adjacency']} "
            f"adjacency, {first['accountant'].upper()} accountant, whole ledger"
        ),
        created=audit["created"],
        title=audit["run"]["title"],
        other_recipe=_other_recipe(audit),
        weights_sha256=audit["run"]["weights_sha256"],
        public=audit["run"]["public"] is not None,
    )


def read_panel(run_dir: Path) -> Panel | None:
    """The panel of a run that was audited, ``None`` of one that was not.

    Raises:
        UsageError: ``audit.json`` cannot be read.
    """
    path = run_dir / "audit.json"
    if not path.is_file():
        return None
    try:
        return panel(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UsageError(f"{path}: not an audit of a run ({error})") from error


def render(audit: Mapping[str, Any]) -> str:
    """The page of an audit: no script, no request, no other file."""
    return pages().get_template("audit.html.jinja").render(audit=panel(audit))


def _gauges(audit: Mapping[str, Any]) -> list[Gauge]:
    engine, sites = audit.get("engine"), audit["sites"]
    pairs = [
        (site["claim"]["epsilon"], site["proof"]["epsilon_lower_bound"]) for site in sites.values()
    ]
    if engine is not None:
        pairs.append((engine["epsilon_claimed"], engine["epsilon_lower_bound"] or 0.0))
    scale = 1.1 * max(1.0, *(value for pair in pairs for value in pair if value is not None))
    found = [
        Gauge(
            name=name,
            claimed=site["claim"]["epsilon"],
            bound=site["proof"]["epsilon_lower_bound"],
            passes=site["proof"]["passes_claim"],
            scale=scale,
            what=f"{site['num_members']} patients trained on, {site['num_non_members']} not",
            by=f"{site['proof']['attack']}, released model",
        )
        for name, site in sites.items()
    ]
    if engine is None:
        return found
    bound = engine["epsilon_lower_bound"]
    of_engine = Gauge(
        name="engine",
        claimed=engine["epsilon_claimed"],
        bound=scale if bound is None else bound,
        passes=engine["passes_claim"],
        scale=scale,
        what="made-up patients, the worst there can be",
        by="canaries, every update seen",
    )
    return [of_engine, *found]


def _site(name: str, site: Mapping[str, Any]) -> Site:
    control = site["control"]
    return Site(
        name=name,
        members=site["num_members"],
        others=site["num_non_members"],
        own=site["non_members"] == "own",
        rows=[_row(attack, one) for attack, one in site["attacks"].items()],
        control=None if control is None else _row("control", control),
        allowed=list(site["claim"]["tpr_bound_at_fpr"].values()),
    )


def _row(name: str, one: Mapping[str, Any]) -> AttackRow:
    low, high = one["auc_ci95"]
    return AttackRow(
        name=name,
        auc=one["auc"],
        low=low,
        high=high,
        found=[(point["tpr"], *point["ci95"]) for point in one["tpr_at_fpr"].values()],
        above_chance=one["above_chance"],
    )


def _other_recipe(audit: Mapping[str, Any]) -> bool:
    engine, run = audit.get("engine"), audit["run"]
    if engine is None:
        return False
    recipe = engine["recipe"]
    same_noise = math.isclose(recipe["noise_multiplier"], run["noise_multiplier"], rel_tol=0.05)
    return not (same_noise and recipe["sampling_rate"] == run["sampling_rate"])
