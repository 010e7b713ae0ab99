"""What a site has spent and done, read from its files; the agent need not run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from client.agent import audit, policy_file
from client.agent.audit import FILE_NAME, AuditReading, Kind, Record
from client.agent.policy import Policy
from client.agent.site_file import SiteFile
from common.errors import UsageError
from common.privacy.book import KEY_NAME
from common.privacy.budget import Budget
from common.privacy.events import rests_on_others
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
        epsilon_alone: the same if no other hospital can be trusted; absent where nothing was done
            that rests on others.
        num_open: reservations that nobody closed.
        problems: what is wrong with the ledger, in words.
    """

    cohort: str
    study: str | None
    budget: Budget | None
    epsilon: float | None
    num_open: int
    problems: tuple[str, ...]
    epsilon_alone: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite epsilon is null, beside ``private: false``."""
        cap, spent = self.budget, self.epsilon
        finite = spent is not None and spent < float("inf")
        alone = {}
        if cap is not None and (self.epsilon_alone is not None or math.isfinite(cap.epsilon_alone)):
            figure = spent if self.epsilon_alone is None else self.epsilon_alone
            alone["epsilon_alone"] = None if figure is None else _finite(figure)
            alone["cap_alone"] = _finite(cap.epsilon_alone)
        return {
            **alone,
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

    @property
    def counts(self) -> bool:
        """Whether it is more than a step on the way to a masked vector, or after it."""
        if self.asked.fields["what"] == "train" or self.asked.fields.get("step") == "masked":
            return True
        return self.answered is not None and self.answered.fields["decision"] != "answered"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        said = {} if self.answered is None else self.answered.fields
        step = {} if "step" not in self.asked.fields else {"step": self.asked.fields["step"]}
        return {
            **step,
            "time": self.asked.time,
            "run": self.asked.fields.get("run"),
            "round": self.asked.fields.get("round"),
            "decision": said.get("decision"),
            "reason": said.get("reason"),
            "seconds": said.get("seconds"),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteStatus:
    """A site at one moment; ``problems`` are those of policy and audit log.

    ``authority_ends`` is when the consortium's certificate authority does, which every connection
    of the hospital rests on; absent where its certificate does not lie beside ``site.yaml``.
    """

    site: str
    cohorts: tuple[CohortStatus, ...]
    rounds: tuple[Round, ...]
    problems: tuple[str, ...]
    authority_ends: datetime | None = None

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
            "authority_ends": None if (at := self.authority_ends) is None else at.isoformat(),
            "cohorts": [one.to_dict() for one in self.cohorts],
            "rounds": [one.to_dict() for one in self.rounds],
        }


def read(file: SiteFile, *, last: int, authority: Path | None = None) -> SiteStatus:
    """The status of the site of ``file``, with its ``last`` training requests.

    Args:
        file: of the agent.
        last: so many requests; 0 is all.
        authority: file of the consortium's authority, which need not be there.

    Raises:
        UsageError: The agent has never run here, or the authority's file is no certificate.
        LedgerError: The site's key cannot be read.
    """
    has_run = (file.state / FILE_NAME).exists() or any(file.ledgers.glob("*.sqlite"))
    if not (has_run and (file.ledgers / KEY_NAME).exists()):
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
        authority_ends=None if authority is None else _end_of(authority),
    )


def _end_of(authority: Path) -> datetime | None:
    try:
        return x509.load_pem_x509_certificate(authority.read_bytes()).not_valid_after_utc
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{authority}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{authority}: no certificate (PEM)") from error


def rounds_of(log: AuditReading) -> Sequence[Round]:
    """Every request of a log that patients are for, in order.

    Of a secure sum that is the question for the masked vector, and every other that was refused.
    """
    answers = {r.fields["asked"]: r for r in log.records if r.kind is Kind.answered}
    return [
        found
        for record in log.records
        if record.kind is Kind.asked and record.fields["what"] in {"train", "secure"}
        if (found := Round(asked=record, answered=answers.get(record.seq))).counts
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
        epsilon_alone=None
        if budget is None or not rests_on_others(found.spent)
        else budget.spent_alone(found.spent),
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


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
