"""The model audit of one site: attacks on a released model, beside what the site claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from client.audit.membership import Answers, Floats, attacks, by_patient
from client.audit.shadows import Laboratory, People
from client.audit.strength import Proof, Strength, measure, prove
from common.privacy import accountants
from common.privacy.events import Event
from common.seeds import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteClaim:
    """What a site's ledger claims for a patient (public).

    Attributes:
        events: everything that the ledger holds, as a patient sees it.
        delta: delta of the claim.
        accountant: that turns events into epsilon.
    """

    events: tuple[Event, ...] = field(repr=False)
    delta: float
    accountant: str

    @property
    def epsilon(self) -> float:
        """Infinite where something was released without noise."""
        return accountants.build(self.accountant).epsilon(self.events, self.delta)

    def allowed(self, fpr: float) -> float:
        """The largest true-positive rate of any attack at a false-positive rate of ``fpr``."""
        return accountants.PldAccountant().true_positive_rate_bound(self.events, fpr)


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteAudit:
    """What a site finds out about itself (private: figures of its patients, without noise).

    Attributes:
        num_members: patients trained on.
        num_others: patients who were not.
        strengths: of each attack, by name.
        proof: what the attacks prove.
        control: the loss of references that were not trained on a patient, as if it were an attack
            on membership; away from 0.5, members and others differ whatever was trained on. Absent
            without references.
    """

    num_members: int
    num_others: int
    strengths: Mapping[str, Strength]
    proof: Proof
    control: Strength | None


def audit_site(
    laboratory: Laboratory,
    people: People,
    claim: SiteClaim,
    *,
    num_pairs: int,
    confidence: float,
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> SiteAudit:
    """Attack the released model with a site's own patients.

    Args:
        laboratory: knows the model and how it was trained.
        people: the site's members and others, as ``laboratory.inputs`` returns them.
        claim: of the site's ledger.
        num_pairs: of references, for the attacks that need some.
        confidence: of the lower bound of epsilon.
        seed: of references, redraws and the choice of an attack.
        done: called after each reference.

    Raises:
        ValueError: if there are too few patients, or the model's answers are not finite.
    """
    answers = laboratory.ask(
        people, num_pairs=num_pairs, seed=derive_seed(seed, "references"), done=done
    )
    scores = {name: _patients(one, people) for name, one in attacks(answers).items()}
    redraws = derive_seed(seed, "redraws")
    return SiteAudit(
        num_members=people.num_members,
        num_others=people.cohort.num_patients - people.num_members,
        strengths={name: measure(one, people.member, seed=redraws) for name, one in scores.items()},
        proof=prove(
            scores,
            people.member,
            delta=claim.delta if math.isfinite(claim.epsilon) else 0.0,
            allowed=claim.allowed,
            confidence=confidence,
            seed=derive_seed(seed, "halves"),
        ),
        control=_control(answers, people, redraws),
    )


def _patients(scores: Floats, people: People) -> Floats:
    cohort = people.cohort
    return by_patient(scores, cohort.patients, cohort.num_patients)


def _control(answers: Answers, people: People, seed: int) -> Strength | None:
    if not len(answers.references):
        return None
    scores = _patients(-answers.without(answers.references), people)
    return measure(scores, people.member, seed=seed)
