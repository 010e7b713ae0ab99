"""`result.json` as the report reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from simulations.report.wording import plain, round_up, site_names

_ACCOUNTANTS = {"pld": "PLD", "rdp": "RDP", "prv": "PRV"}
_MECHANISMS = {"dp_sgd": "DP-SGD"}
_REASONS = {
    "budget_exceeded": "one more round would have passed its privacy budget",
    "refused": "the hospital declined",
    "bad_request": "it could not make sense of the request",
    "unknown_pool": "it does not know of having paid for the synthetic images or weights",
    "insecure": "its update would have been seen alone, or the secure sum did not hold",
    "policy": "its own rules do not allow what was asked",
    "policy_unreadable": "its own rules could not be read, so it refuses everything",
    "paused": "it has paused all training",
    "outside_hours": "it trains at other hours only",
    "weak_noise": "its own rules ask for more noise",
    "small_batch": "its own rules ask for more patients in a step",
    "high_sampling_rate": "its own rules allow fewer of its patients in a step",
    "too_many_steps": "its own rules allow fewer steps in a round",
    "unapproved_study": "its own rules do not name the study",
    "unapproved_model": "its own rules do not allow this model",
    "unapproved_generator": "its own rules do not allow a generator to be trained",
    "unapproved_code": "it has not approved the code that asked",
    "unapproved_trust": "its own rules do not allow its noise to be shared so, or not to be shared",
    "weak_trust": "its own rules ask for more hospitals, or for more that may collude",
    "no_roster": "it has no roster of the hospitals' keys",
    "another_roster": "its roster of the hospitals' keys is another",
    "model_mismatch": "its model is another, or private training does not cover it",
    "ledger_unavailable": "its ledger could not be written or trusted",
    "internal_error": "its work broke off",
    "no_reply": "it did not answer in time",
    "not_connected": "it was not connected",
    "unreadable": "its reply could not be read, and was put into quarantine",
    "another_site": "its reply named another hospital, and was put into quarantine",
    "wrong_shape": "its update did not fit the model, and was put into quarantine",
    "not_finite": "its update was not finite, and was put into quarantine",
    "too_large": "its update was larger than its recipe allows, and was put into quarantine",
    "bad_statement": "its statement of what it had spent did not hold",
}

_PRIVACY = (
    "accountant",
    "accountant_version",
    "adjacency",
    "delta",
    "epsilon_federation",
    "epsilon_target",
    "max_grad_norm",
    "mechanism",
    "noise_multiplier",
    "private",
    "rounds_planned",
    "sampler",
    "sampling_rate",
    "sites",
    "steps_per_round",
    "unit",
)

Result = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRow:
    """One hospital's row: what it did and what it spent."""

    name: str
    num_patients: int | None
    status: str
    rounds_trained: int
    rounds_asked: int
    epsilon: float | None
    epsilon_rdp: float | None
    epsilon_budget: float | None
    tpr_bounds: Mapping[str, float]
    reason: str | None
    stops_after: int | None = None


class Page:
    """`result.json` as the template reads it; every absent field has an honest stand-in."""

    def __init__(self, result: Result) -> None:
        """Read ``result`` and keep it."""
        self.result = result
        self.title: str = result.get("title") or "untitled run"
        self.state: str = result.get("state") or "failed"
        self.config: Result = result.get("config") or {}
        self.versions: Result = result.get("versions") or {}
        self.rounds: Sequence[Result] = result.get("rounds") or []
        self.final: Result = result.get("final") or {}
        self.test: Result | None = self.final.get("test")
        self.privacy: Result = dict.fromkeys(_PRIVACY) | dict(result.get("privacy") or {})
        self.synthetic: Result | None = result.get("synthetic")
        self.initial_weights: Sequence[Result] = result.get("initial_weights") or []
        study: Result = result.get("study") or {}
        self.study: str = study.get("name") or "(unnamed)"
        self.public: str | None = study.get("public")
        self.num_train_patients: int | None = study.get("num_train_patients")
        self.num_train_images: int | None = study.get("num_train_images")
        task: Result = study.get("task") or {}
        self.task_kind: str = task.get("kind") or "binary"
        self.names: Sequence[str] = task.get("names") or ["malignant"]  # results of the first days
        test: Result = self.test or {}
        self.labels: Sequence[Result] = test.get("labels") or []
        self.groups: Mapping[str, Sequence[Result]] = test.get("groups") or {}
        kind = (self.config.get("data") or {}).get("kind")
        self.phantom = "phantom" in (kind, self.study)
        self.person, self.persons = (
            ("phantom", "phantoms") if self.phantom else ("patient", "patients")
        )
        federation: Result = self.config.get("federation") or {}
        self.samples_sites = federation.get("sites_per_round") is not None
        self.sites = _sites(
            self.rounds, self.privacy["sites"] or {}, all_asked=not self.samples_sites
        )

    def interval(self, name: str) -> str:
        """The 95 % interval of a figure of the final test, as text."""
        found = ((self.test or {}).get("figures") or {}).get(name) or {}
        ends = found.get("ci95")
        return "not computed" if not ends else f"{ends[0]:.3f} to {ends[1]:.3f}"

    @property
    def fairness(self) -> Mapping[str, Result]:
        """By name of a group column the figures of its groups; of several labels their mean."""
        found = (self.test or {}).get("fairness") or {}
        return {name: column["mean"] or column["labels"][0] for name, column in found.items()}

    @property
    def site_level(self) -> Result | None:
        """What protects a whole hospital, if anything does."""
        return (self.result.get("privacy") or {}).get("site_level")

    @property
    def shared_noise(self) -> Result | None:
        """What the trust in secure sums rests on; nothing where each hospital has its own noise."""
        return self.privacy.get("secure_aggregation")

    @property
    def epsilon_alone(self) -> float | None:
        """The largest of a hospital that can trust no other, where noise is shared."""
        sites: Mapping[str, Result] = self.privacy["sites"] or {}
        spent = [site.get("epsilon_alone", site["epsilon"]) for site in sites.values()]
        known = [epsilon for epsilon in spent if epsilon is not None]
        return max(known) if known and len(known) == len(spent) else None

    @property
    def several(self) -> str | None:
        """What the AUROC is a mean over, such as "14 findings"; ``None`` if it is of one alone."""
        num_measured = len(self.names) - len(self.left_out)
        return None if self.task_kind == "binary" else self.count_of_names(num_measured)

    @property
    def left_out(self) -> Sequence[str]:
        """Names without an AUROC on the test set."""
        return (self.test or {}).get("left_out") or []

    def count_of_names(self, number: int) -> str:
        """So many findings, or classes.

        >>> Page({"study": {"task": {"kind": "multiclass", "names": ["a", "b"]}}}).count_of_names(1)
        '1 class'
        """
        one = "class" if self.task_kind == "multiclass" else "finding"
        return f"{number} {one if number == 1 else self.plural}"

    @property
    def plural(self) -> str:
        """What the names of the task are."""
        return "classes" if self.task_kind == "multiclass" else "findings"

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon stated; ``None`` (infinite) as soon as one is missing.

        Zero if the run ended before any hospital was asked.
        """
        if not self.privacy["private"]:
            return None
        if not self.sites:
            return 0.0
        stated = [self.privacy["epsilon_federation"], *(site.epsilon for site in self.sites)]
        finite = [value for value in stated if value is not None and math.isfinite(value)]
        return max(finite) if len(finite) == len(stated) else None

    @property
    def likelihood_ratio(self) -> str:
        """The number e to the power of the largest epsilon, rounded up to three digits."""
        if self.epsilon is None or self.epsilon > 30:
            return "more than 1,000,000,000,000"
        exact = Decimal(repr(math.exp(self.epsilon)))
        unit = Decimal(1).scaleb(exact.adjusted() - 2)
        return f"{exact.quantize(unit, ROUND_CEILING):,f}"

    @property
    def unit_level(self) -> str:
        """Whose presence is hidden, as an epsilon is labelled."""
        unit = self.privacy["unit"] or "unknown"
        if self.phantom and unit == "patient":
            return "one phantom counted as one patient"
        return f"{unit} level"

    @property
    def accountant(self) -> str:
        """The accountant's short name."""
        name = self.privacy["accountant"] or "unknown"
        return _ACCOUNTANTS.get(name, name)

    @property
    def mechanism(self) -> str:
        """The mechanism's usual name."""
        name = self.privacy["mechanism"] or "unknown"
        return _MECHANISMS.get(name, name)

    @property
    def terms(self) -> str:
        """All that an epsilon needs beside it."""
        privacy = self.privacy
        version = privacy["accountant_version"] or "version unknown"
        sampler = str(privacy["sampler"] or "unknown").capitalize()
        return (
            f"delta {round_up(privacy['delta'])}, {self.unit_level}, "
            f"{privacy['adjacency'] or 'unknown'} adjacency, {self.mechanism} with {sampler} "
            f"sampling, {self.accountant} accountant, {version}, all rounds together"
        )

    @property
    def rounds_planned(self) -> int:
        """Rounds that the run was to have, at least those it had."""
        federation: Result = self.config.get("federation") or {}
        planned = self.privacy["rounds_planned"] or federation.get("rounds") or 1
        return max(planned, *(entry["round"] for entry in self.rounds), 1)

    @property
    def incomplete(self) -> list[SiteRow]:
        """Hospitals that missed a round."""
        return [site for site in self.sites if site.rounds_trained < site.rounds_asked]

    @property
    def num_in_last_round(self) -> int:
        """How many hospitals trained in the last round."""
        return self.num_with_status(self.rounds[-1], "trained") if self.rounds else 0

    @property
    def epsilon_rdp(self) -> float | None:
        """The largest epsilon that the RDP accountant gives for a hospital, if it was asked."""
        stated = [site.epsilon_rdp for site in self.sites if site.epsilon_rdp is not None]
        return max(stated, default=None)

    @property
    def tpr_rows(self) -> list[tuple[str, Mapping[str, float]]]:
        """Bounds on the true-positive rate, hospitals with the same bounds in one row."""
        grouped: dict[tuple[tuple[str, float], ...], list[str]] = {}
        for site in self.sites:
            grouped.setdefault(tuple(sorted(site.tpr_bounds.items())), []).append(site.name)
        return [(site_names(own, len(self.sites)), dict(bounds)) for bounds, own in grouped.items()]

    @property
    def tpr_rates(self) -> list[str]:
        """The false-positive rates that some hospital has a bound for, largest first."""
        return sorted({rate for site in self.sites for rate in site.tpr_bounds}, key=float)[::-1]

    @property
    def settings(self) -> list[tuple[str, str]]:
        """The resolved configuration, one dotted name per line."""
        return [(name, plain(value)) for name, value in flattened(self.config)]

    @property
    def tuned_on(self) -> str | None:
        """Whose data chose the settings, as the configuration says: ``public``, ``private``."""
        return (self.config.get("privacy") or {}).get("tuned_on")

    def num_with_status(self, entry: Result, status: str) -> int:
        """How many hospitals had ``status`` in the round ``entry``."""
        return sum(site.get("status") == status for site in (entry.get("sites") or {}).values())

    def largest_epsilon(self, entry: Result) -> float | None:
        """The largest epsilon that a hospital had spent after the round ``entry``."""
        spent = [site.get("epsilon") for site in (entry.get("sites") or {}).values()]
        return max((value for value in spent if value is not None), default=None)


def _sites(
    rounds: Sequence[Result], spending: Result, *, all_asked: bool = True
) -> tuple[SiteRow, ...]:
    """Every hospital that a round or the ledger names, hospital-2 before hospital-10.

    A round names those that it asked; where it asked all, one that it does not name was absent.
    """
    names = {*spending, *(name for entry in rounds for name in entry.get("sites") or {})}

    def row(name: str) -> SiteRow:
        history: list[Result] = [(entry.get("sites") or {}).get(name) or {} for entry in rounds]
        if not all_asked:
            history = [past for past in history if past]
        reasons = [past["reason"] for past in history if past.get("reason")]
        spent: Result = spending.get(name) or {}
        return SiteRow(
            name=name,
            num_patients=spent.get("num_patients"),
            status=(history[-1].get("status") if history else None)
            or ("absent" if all_asked else "not asked"),
            rounds_trained=sum(past.get("status") == "trained" for past in history),
            rounds_asked=len(history),
            epsilon=spent.get("epsilon"),
            epsilon_rdp=spent.get("epsilon_rdp"),
            epsilon_budget=spent.get("epsilon_budget"),
            tpr_bounds=spent.get("tpr_bound_at_fpr") or {},
            reason=_REASONS.get(reasons[-1], reasons[-1]) if reasons else None,
            stops_after=history[-1].get("stops_after") if history else None,
        )

    return tuple(row(name) for name in sorted(names, key=_natural))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(part[0] > "9", int(part) if part.isdecimal() else 0, part) for part in parts]


def flattened(tree: Result, prefix: str = "") -> Iterator[tuple[str, object]]:
    """A nested configuration as dotted names and values."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
