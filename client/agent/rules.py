"""Whether the policy allows what a server asks: a code if not, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from client.agent.policy import Policy
from common.config import Trust
from common.messages import Reason, Recipe
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.terms import Terms


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a site's patients would be used for, by the site's own configuration (public).

    Attributes:
        study: name of the study that the cohort is of.
        model: architecture, or kind of generator.
        generator: whether a generator of synthetic images is trained.
        num_patients: of the cohort.
        num_images: of the cohort.
    """

    study: str
    model: str
    generator: bool
    num_patients: int
    num_images: int

    def expected_batch(self, recipe: Recipe) -> float:
        """Privacy units in a step, on average."""
        units = self.num_patients if recipe.unit == "patient" else self.num_images
        return recipe.sampling_rate * units


def closed(policy: Policy, now: datetime) -> Reason | None:
    """Why nothing may begin at all, if so."""
    if policy.paused:
        return Reason.paused
    if policy.hours and not any(window.holds(now.time()) for window in policy.hours):
        return Reason.outside_hours
    return None


def unsuited(policy: Policy, work: Work, trust: Trust) -> Reason | None:
    """Why the policy does not allow this site's work under this trust, if so."""
    if trust not in policy.trust.accepted:
        return Reason.unapproved_trust
    if work.study not in policy.studies:
        return Reason.unapproved_study
    if work.generator and not policy.generators:
        return Reason.unapproved_generator
    if not work.generator and not any(fnmatchcase(work.model, one) for one in policy.models):
        return Reason.unapproved_model
    return None


def unpinned(policy: Policy, terms: Terms, roster: Roster | None) -> Reason | None:
    """Why the site takes no part in sums on these terms, if so.

    Args:
        policy: with the least that the hospital insists on.
        terms: of the round, as the server proposes them.
        roster: pinned at the site; nothing of it comes from the server.
    """
    if roster is None:
        return Reason.no_roster
    if terms.roster != roster.digest or terms.num_sites != len(roster.names):
        return Reason.another_roster
    least = policy.trust
    if terms.num_sites < least.least_sites or terms.max_colluders < least.least_colluders:
        return Reason.weak_trust
    return None


def refusal(
    policy: Policy, work: Work, recipe: Recipe, trust: Trust = Trust.local
) -> Reason | None:
    """Why the policy does not allow ``recipe``, if so. The budget is the ledger's to judge."""
    reason = unsuited(policy, work, trust)
    if reason is not None:
        return reason
    if not recipe.private or recipe.noise_multiplier < policy.smallest_noise_multiplier:
        return Reason.weak_noise
    if recipe.sampling_rate > policy.largest_sampling_rate:
        return Reason.high_sampling_rate
    if work.expected_batch(recipe) < policy.smallest_expected_batch:
        return Reason.small_batch
    if recipe.steps > policy.largest_steps:
        return Reason.too_many_steps
    return None
