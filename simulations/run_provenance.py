"""Where what a run made comes from: its own training, and everything that went into it."""

from __future__ import annotations

from collections.abc import Sequence

from client.synthesis.source import Source
from common import provenance
from common.messages import Recipe
from common.privacy.chain import State
from common.privacy.cohort import fingerprint_of
from common.privacy.events import merge
from common.provenance import Charge, Kind, Provenance, of_this_program
from simulations.sites import SimulatedSites


def provenance_of(
    sites: SimulatedSites, recipe: Recipe, sources: Sequence[Source], *, what: str
) -> Provenance:
    """The provenance of ``what`` the run of ``sites`` trained.

    Args:
        sites: the hospitals; what they paid is read from their ledgers.
        recipe: that they followed.
        sources: what was made from patients before and went into it.
        what: was trained, such as ``"a generator"``.
    """
    config = sites.config
    run_id = sites.run_dir.run_id.read_text().strip()
    charges = tuple(_charge(sites, name, run_id, recipe) for name in sites.names)
    charged = tuple(charge for charge in charges if charge.requests)
    common = {
        "studies": (config.data.name,),
        "seed": config.seed,
        "source": f"run {run_id} ({config.title})",
        "code": of_this_program(),
    }
    if not charged:
        own = Provenance(kind=Kind.public, reason="no patient was asked", **common)
    elif config.privacy.private:
        own = Provenance(kind=Kind.private, charges=charged, **common)
    elif config.data.public:
        own = Provenance(kind=Kind.public, reason=config.data.public, **common)
    else:
        reason = f"{what} trained without differential privacy on patients of {config.data.name}"
        own = Provenance(kind=Kind.not_private, reason=reason, **common)
    return provenance.combined([own, *(source.provenance for source in sources)])


def _charge(sites: SimulatedSites, name: str, run_id: str, recipe: Recipe) -> Charge:
    """What the ledger of a hospital holds of this run."""
    setup = sites.setup(name)
    with setup.open_ledger(setup.budget.unit) as ledger:
        mine = [
            entry
            for entry in ledger.entries()
            if entry.request_id.startswith(f"{run_id}/")
            and not entry.origin
            and entry.state is not State.abandoned
        ]
    return Charge(
        site=name,
        cohort=fingerprint_of(setup.patient_hashes),
        num_patients=setup.cohort.num_patients,
        requests=tuple(entry.request_id for entry in mine),
        events=merge(event for entry in mine for event in entry.events),
        delta=recipe.delta,
        unit=recipe.unit,
        accountant=recipe.accountant,
    )
