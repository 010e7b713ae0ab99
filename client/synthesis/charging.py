"""Who pays for images and weights that were made from patients: those have a ledger."""

from __future__ import annotations

from client.synthesis.source import Source
from common.errors import Refusal
from common.messages import Reason
from common.privacy.book import BookedLedger
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.events import NonPrivateRelease, within
from common.privacy.ledger import Ledger
from common.provenance import Kind


class UnknownPool(Refusal):
    """The ledger does not hold what this site is said to have paid for a source."""

    code = Reason.unknown_pool.value


def charge(
    ledger: Ledger | BookedLedger, source: Source, *, site: str, study: str, budget: Budget
) -> None:
    """Make the ledger hold what ``source`` cost this site's patients.

    Nothing is charged for what is public, or made from other studies. What was trained
    without privacy on these patients makes their epsilon infinite; once charged is enough. What
    was trained with privacy on them is in the ledger already, under the requests that the
    provenance names; it is looked up, in a ledger that outlives runs: one that began with this run
    knows nothing of what its patients paid before. A site that the provenance does not name cannot
    tell whether its patients are behind it under another name, so it does not use it.

    Raises:
        BudgetExceeded: if the site has a cap that this would pass.
        UnknownPool: if what this site is said to have paid is not in the ledger.
        LedgerError: if the ledger cannot record it.
    """
    made = source.provenance
    if not made.concerns(study):
        return
    if made.kind is Kind.not_private:
        ledger.reserve(
            request_id=source.request_id,
            events=(NonPrivateRelease(reason=f"{source.what}: {made.reason}"),),
            purpose=source.what,
            budget=budget,
        )
        ledger.commit(source.request_id)
        return
    if not isinstance(ledger, BookedLedger):
        raise UnknownPool(f"{site}: its ledger does not outlive runs")
    paid = {e.request_id: e for e in ledger.entries() if e.state is not State.abandoned}
    mine = [paid_here for paid_here in made.charges if paid_here.site == site]
    if not mine:
        raise UnknownPool(f"{site}: the provenance does not say what its patients paid")
    for stated in mine:
        events = [event for name in stated.requests if name in paid for event in paid[name].events]
        if not paid.keys() >= set(stated.requests) or not within(stated.events, events):
            raise UnknownPool(f"{site}: its ledger does not hold what it is said to have paid")
