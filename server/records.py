"""What is written down of a round: who did what, and what it had spent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from common.messages import Reason
from server.inquiry import Inquiry

History = Sequence[dict[str, Any]]


def site_records(
    inquiry: Inquiry, history: History, left: Collection[str]
) -> dict[str, dict[str, Any]]:
    """This round's answers by site, and the last answer of sites that left before."""
    records = {
        name: {
            **answer.record(),
            "statement": answer.reply.spend,
            "problems": list(answer.problems),
            "attempts": inquiry.attempts.get(name, 0),
        }
        for name, answer in inquiry.answers.items()
    }
    for name in set(left) - set(records):
        records[name] = dict(_last(history, name))
    for late in inquiry.late:
        spend = None if late.answer is None else late.answer.reply.spend
        known = records.get(late.site)
        if spend is not None and known is not None and known["statement"] is None:
            records[late.site] |= {"statement": spend, "epsilon": spend["epsilon"]}
    for name, record in records.items():
        # What was spent before is still spent; null would read as infinite.
        if name in inquiry.answers and record["statement"] is None:
            record["epsilon"] = _last(history, name).get("epsilon")
    return dict(sorted(records.items()))


def late_records(
    inquiry: Inquiry, sites: Collection[str], used: Collection[str]
) -> list[dict[str, Any]]:
    """Replies that came after their round.

    What they say was spent stands here for sites without a record of this round, which was not
    theirs.

    Args:
        inquiry: of this round.
        sites: with a record of it.
        used: whose late update counts in it.
    """
    found: list[dict[str, Any]] = []
    for late in inquiry.late:
        found.append({"site": late.site, "round": late.round, "used": late.site in used})
        if late.site not in sites and late.answer is not None:
            found[-1]["statement"] = late.answer.reply.spend
    return found


def _last(history: History, name: str) -> dict[str, Any]:
    """The site's record of the last round that has one; empty if none has."""
    found = (record["sites"][name] for record in reversed(history) if name in record["sites"])
    return next(found, {})


def left_for_good(history: History) -> dict[str, str]:
    """Sites that refused for good, and why."""
    last: dict[str, dict[str, Any]] = history[-1]["sites"] if history else {}
    return {
        name: site["reason"]
        for name, site in last.items()
        if site["status"] == "refused" and site["reason"] and Reason(site["reason"]).for_good
    }
