"""One site's audit, of answers that are known: patients count, on the right side, for the claim."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from client.audit.membership import Answers, Floats
from client.audit.shadows import Laboratory, People
from client.audit.site_audit import SiteAudit, SiteClaim, audit_site
from client.data.cohort import Cohort
from common.privacy.accountants import PldAccountant
from common.privacy.events import GaussianRelease, NonPrivateRelease

MEMBERS, OTHERS = 40, 60
PATIENTS = MEMBERS + OTHERS
IS_MEMBER = np.arange(PATIENTS) < MEMBERS
# of each patient: one to four
IMAGES_EACH = 1 + np.arange(PATIENTS) % 4
IMAGES = np.repeat(np.arange(PATIENTS), IMAGES_EACH)

WEAK = GaussianRelease(noise_multiplier=20.0)
CLAIM = SiteClaim(events=(WEAK,), delta=1e-5, accountant="pld")
NO_CLAIM = SiteClaim(events=(NonPrivateRelease(reason="a test"),), delta=1e-5, accountant="pld")


@dataclass(frozen=True)
class Told:
    """A laboratory whose answers are known before."""

    answers: Answers

    def ask(
        self, people: People, *, num_pairs: int, seed: int, done: Callable[[], None]
    ) -> Answers:
        del people, num_pairs, seed, done
        return self.answers


def people() -> People:
    return People(
        cohort=Cohort(
            images=np.zeros((len(IMAGES), 1, 1, 1), dtype=np.float32),
            labels=np.zeros(len(IMAGES), dtype=np.int64),
            patients=IMAGES,
            num_patients=PATIENTS,
            patient_ids=(),
        ),
        num_members=MEMBERS,
    )


def audited(
    losses: Floats,
    references: Any = None,
    absent: Any = None,
    *,
    claim: SiteClaim = CLAIM,
    confidence: float = 0.95,
) -> SiteAudit:
    shape = (0, len(losses))
    answers = Answers(
        losses=losses,
        references=np.zeros(shape) if references is None else references,
        absent=np.zeros(shape, dtype=bool) if absent is None else absent,
    )
    laboratory = cast("Laboratory", Told(answers))
    return audit_site(laboratory, people(), claim, num_pairs=0, confidence=confidence, seed=3)


def of_patients(values: Floats) -> Floats:
    """One number for each patient, as numbers of images that have it as their mean."""
    rng = np.random.default_rng(0)
    around = rng.normal(scale=5.0, size=len(IMAGES))
    means = np.bincount(IMAGES, weights=around) / IMAGES_EACH
    return values[IMAGES] + (around - means[IMAGES])


EASY = of_patients(np.where(IS_MEMBER, 10.0, 10.1) + 0.001 * np.arange(PATIENTS) / PATIENTS)


def test_patients_are_told_apart_where_images_are_not() -> None:
    found = audited(EASY)
    assert (found.num_members, found.num_others) == (MEMBERS, OTHERS)
    assert found.strengths["loss"].auc == 1.0
    # by image nothing could be seen: differences between a patient's images are 50 times as large
    first = np.unique(IMAGES, return_index=True)[1]
    assert not np.array_equal(EASY[first] < 10.05, IS_MEMBER)


def test_who_was_trained_on_has_the_smaller_loss() -> None:
    found, turned = audited(EASY), audited(20.0 - EASY)
    assert (found.strengths["loss"].auc, turned.strengths["loss"].auc) == (1.0, 0.0)
    assert found.proof.epsilon > 1.5
    assert turned.proof.epsilon == 0.0


def test_an_attack_that_finds_all_passes_a_small_claim_alone() -> None:
    assert CLAIM.epsilon < 0.3
    assert audited(EASY).proof.passes_claim
    assert not audited(EASY, claim=NO_CLAIM).proof.passes_claim


def test_the_confidence_is_that_of_the_rates() -> None:
    found = audited(EASY, confidence=0.9)
    # the judging half: all 20 members found, none of 30 others, each with half of the error
    assert found.proof.confidence == 0.9
    assert found.proof.rates.true_positive == pytest.approx(0.05 ** (1 / 20))
    assert found.proof.rates.false_positive == pytest.approx(1 - 0.05 ** (1 / 30))


def test_a_claim_counts_every_event() -> None:
    twice = SiteClaim(events=(WEAK, WEAK), delta=1e-5, accountant="pld")
    assert twice.epsilon == pytest.approx(PldAccountant().epsilon([WEAK, WEAK], 1e-5))
    assert twice.allowed(0.1) > CLAIM.allowed(0.1) > 0.1
    assert (NO_CLAIM.epsilon, NO_CLAIM.allowed(0.01)) == (math.inf, 1.0)


def test_the_control_is_of_references_that_never_saw_a_patient() -> None:
    """Two references; each saw one half, and knows whom it saw. Neither knows the others better."""
    flat = of_patients((np.arange(PATIENTS) % 7).astype(np.float64))
    seen_by_first = np.arange(PATIENTS)[IMAGES] % 2 == 0
    absent = np.stack([~seen_by_first, seen_by_first])
    known = np.where(IS_MEMBER[IMAGES], -50.0, 50.0)  # of whom it saw, members better
    references = 100.0 + flat + np.where(absent, 0.0, known)
    control = audited(EASY, references, absent).control
    assert control is not None
    assert control.auc == pytest.approx(0.5, abs=0.05)
    assert not control.above_chance
    # members whom even a stranger's model finds easier
    control = audited(EASY, references - 20.0 * IS_MEMBER[IMAGES], absent).control
    assert control is not None
    assert control.auc == 1.0
    assert control.above_chance


def test_without_references_there_is_no_control() -> None:
    found = audited(EASY)
    assert found.control is None
    assert set(found.strengths) == {"loss"}
