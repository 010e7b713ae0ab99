"""What a site has spent and done, read from its files; the agent need not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client.agent import audit, policy_file
from client.agent.audit import FILE_NAME, AuditReading, Kind, Record
from client.agent.policy import Policy
from client.agent.site_file import SiteFile
from common.errors import UsageError
from common.privacy.book import KEY_NAME
from common.privacy.budget import Budget
from common.privacy.keys import SiteKey
from common.privacy.verification import Verification, verify

SCHEMA = "fedward.site-status/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortStatus:
    """One cohort's spend, by the policy's terms.

    Attributes:
        cohort: keyed fingerprint.
        study: of the cohort, where the agent has served it.
        budget: the cap; absent where the policy names no such study.
        epsilon: spent, open reservations included, at the budget's delta.
        num_open: reservations that nobody closed.
        problems: what is wrong with the ledger, in words.
    """

    cohort: str
    study: str | None
    budget: Budget | None
    epsilon: float | None
    num_open: int
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite epsilon is null, beside ``private: false``."""
        cap, spent = self.budget, self.epsilon
        finite = spent is not None and spent < float("inf")
        return {
            "cohort": self.cohort,
            "study": self.study,
            "private": None if spent is None else finite,
            "epsilon": spent if finite else None,
            "cap": None if cap is None else cap.epsilon,
            "left": None if cap is None or spent is None else max(0.0, cap.epsilon - spent),
            "delta": None if cap is None else cap.delta,
            "unit": None if cap is None else cap.unit.value,
            "accountant": None if cap is None else cap.accountant,
            "num_open": self.num_open,
            "problems": list(self.problems),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One training request and what became of it; an unanswered one broke off, or goes on."""

    asked: Record
    answered: Record | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        said = {} if self.answered is None else self.answered.fields
        return {
            "time": self.asked.time,
            "run": self.asked.fields.get("run"),
            "round": self.asked.fields.get("round"),
            "decision": said.get("decision"),
            "reason": said.get("reason"),
            "seconds": said.get("seconds"),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteStatus:
    """A site at one moment; ``problems`` are those of policy and audit log."""

    site: str
    cohorts: tuple[CohortStatus, ...]
    rounds: tuple[Round, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong anywhere."""
        return not self.problems and not any(one.problems for one in self.cohorts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema": SCHEMA,
            "site": self.site,
            "problems": list(self.problems),
            "cohorts": [one.to_dict() for one in self.cohorts],
            "rounds": [one.to_dict() for one in self.rounds],
        }


def read(file: SiteFile, *, last: int) -> SiteStatus:
    """The status of the site of ``file``, with its ``last`` training requests.

    Raises:
        UsageError: The agent has never run here.
        LedgerError: The site's key cannot be read.
    """
    if not (file.ledgers / KEY_NAME).exists():
        raise UsageError(f"{file.state}: no agent has run here yet")
    key = SiteKey.load(file.ledgers / KEY_NAME).public_key
    reading = policy_file.read(file.policy)
    log = audit.read(file.state / FILE_NAME, public_key=key, ledgers=file.ledgers)
    problems = [reading.problem] if reading.policy is None else []
    studies = {
        str(record.fields["cohort"]): str(record.fields["study"])
        for record in log.records
        if record.kind is Kind.started
    }
    cohorts = [
        _cohort(verify(path, public_key=key), studies, reading.policy)
        for path in sorted(file.ledgers.glob("*.sqlite"))
    ]
    touched = {one.cohort for one in cohorts}
    cohorts += [
        _untouched(cohort, study, reading.policy)
        for cohort, study in studies.items()
        if cohort not in touched
    ]
    return SiteStatus(
        site=file.name,
        cohorts=tuple(cohorts),
        rounds=tuple(rounds_of(log)[-last:] if last else rounds_of(log)),
        problems=(*problems, *log.problems),
    )


def rounds_of(log: AuditReading) -> Sequence[Round]:
    """Every training request of a log, in order."""
    answers = {r.fields["asked"]: r for r in log.records if r.kind is Kind.answered}
    return [
        Round(asked=record, answered=answers.get(record.seq))
        for record in log.records
        if record.kind is Kind.asked and record.fields["what"] == "train"
    ]


def _cohort(found: Verification, studies: dict[str, str], policy: Policy | None) -> CohortStatus:
    fingerprint = "" if found.cohort is None else found.cohort.fingerprint
    study = studies.get(fingerprint)
    budget = policy.studies.get(study) if policy is not None and study is not None else None
    return CohortStatus(
        cohort=fingerprint,
        study=study,
        budget=budget,
        epsilon=None if budget is None else budget.spent(found.spent),
        num_open=sum(entry.state.value == "reserved" for entry in found.entries),
        problems=found.problems,
    )


def _untouched(cohort: str, study: str, policy: Policy | None) -> CohortStatus:
    """A cohort that was served and that nobody has worked on: it has no ledger yet."""
    budget = None if policy is None else policy.studies.get(study)
    return CohortStatus(
        cohort=cohort,
        study=study,
        budget=budget,
        epsilon=None if budget is None else budget.spent([]),
        num_open=0,
        problems=(),
    )
