from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.data.cohort import Cohort
from client.synthesis.charging import UnknownPool
from client.synthesis.charging import charge as charge_for
from client.synthesis.image_set import ImageSet
from common.errors import BudgetExceeded
from common.privacy.book import LedgerBook
from common.privacy.budget import Budget
from common.privacy.cohort import fingerprint_of, patient_hashes
from common.privacy.events import PoissonGaussianSteps
from common.privacy.ledger import Cohort as LedgerCohort
from common.privacy.ledger import Ledger
from common.provenance import Charge, Kind, Provenance

STEPS = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=2.0, steps=4)
OPEN = Budget(epsilon=math.inf, delta=1e-5)
HASHES = patient_hashes(["a", "b", "c"], bytes(32))
ABOUT = LedgerCohort(fingerprint=fingerprint_of(HASHES), patient_hashes=HASHES)


def pool(made: Provenance) -> ImageSet:
    images = Cohort(
        images=np.zeros((2, 1, 8, 8), np.float32),
        labels=np.array([0, 1]),
        patients=np.arange(2),
        num_patients=2,
        patient_ids=(),
    )
    return ImageSet(cohort=images, provenance=made, digest="d1")


def charge(site: str = "north", *, requests: tuple[str, ...] = ("g/1/train",)) -> Charge:
    return Charge(
        site=site,
        cohort=ABOUT.fingerprint,
        num_patients=3,
        requests=requests,
        events=(STEPS,),
        delta=1e-5,
        unit="patient",
        accountant="pld",
    )


PRIVATE = Provenance(kind=Kind.private, studies=("cbis",), charges=(charge(),))
LEAKY = Provenance(kind=Kind.not_private, reason="a GAN without privacy", studies=("cbis",))


def paid(folder: Path, *, steps: PoissonGaussianSteps = STEPS, request: str = "g/1/train") -> None:
    with LedgerBook.at(folder).open_booked(ABOUT) as ledger:
        ledger.reserve(request_id=request, events=[steps], purpose="train", budget=OPEN)
        ledger.commit(request)


def use(folder: Path, made: Provenance, *, budget: Budget = OPEN, study: str = "cbis") -> float:
    with LedgerBook.at(folder).open_booked(ABOUT) as ledger:
        charge_for(ledger, pool(made).source, site="north", study=study, budget=budget)
        return ledger.epsilon(1e-5)


def test_what_was_paid_is_not_charged_again(tmp_path: Path) -> None:
    paid(tmp_path)
    before = use(tmp_path, replace(PRIVATE, studies=("other",)))
    assert use(tmp_path, PRIVATE) == before > 0


@pytest.mark.parametrize(
    "made",
    [
        replace(PRIVATE, charges=(charge(requests=("g/1/train", "g/2/train")),)),
        replace(PRIVATE, charges=(charge(requests=()),)),
        replace(PRIVATE, charges=(replace(charge(), events=(replace(STEPS, steps=5),)),)),
        replace(
            PRIVATE, charges=(replace(charge(), events=(replace(STEPS, noise_multiplier=1.9),)),)
        ),
    ],
)
def test_more_than_the_ledger_holds_is_refused(made: Provenance, tmp_path: Path) -> None:
    paid(tmp_path)
    with pytest.raises(UnknownPool):
        use(tmp_path, made)


def test_an_empty_ledger_knows_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownPool):
        use(tmp_path, PRIVATE)


def test_a_site_that_is_not_named_cannot_tell_and_refuses(tmp_path: Path) -> None:
    """Its patients may be behind the images as those of a site of another name."""
    paid(tmp_path)
    elsewhere = replace(PRIVATE, charges=(charge("south"),))
    with pytest.raises(UnknownPool, match="does not say what its patients paid"):
        use(tmp_path, elsewhere)
    both = replace(PRIVATE, charges=(charge("south"), charge()))
    assert use(tmp_path, both) > 0


def test_a_ledger_of_this_run_alone_cannot_say(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite", cohort=ABOUT.fingerprint) as ledger:
        with pytest.raises(UnknownPool, match="does not outlive runs"):
            charge_for(ledger, pool(PRIVATE).source, site="north", study="cbis", budget=OPEN)
        charge_for(ledger, pool(PRIVATE).source, site="north", study="kermany", budget=OPEN)
        public = Provenance(kind=Kind.public, reason="phantoms")
        charge_for(ledger, pool(public).source, site="north", study="cbis", budget=OPEN)
        assert ledger.entries() == ()


def test_without_privacy_epsilon_is_infinite_once_and_for_all(tmp_path: Path) -> None:
    capped = Budget(epsilon=8.0, delta=1e-5)
    with pytest.raises(BudgetExceeded):
        use(tmp_path, LEAKY, budget=capped)
    assert use(tmp_path, LEAKY, study="kermany") == 0
    assert use(tmp_path, LEAKY) == math.inf
    assert use(tmp_path, LEAKY) == math.inf
    with LedgerBook.at(tmp_path).open_booked(ABOUT) as ledger:
        (entry,) = ledger.entries()
        assert entry.request_id == "pool/d1"
        with pytest.raises(BudgetExceeded):
            ledger.reserve(request_id="r", events=[STEPS], purpose="train", budget=capped)
