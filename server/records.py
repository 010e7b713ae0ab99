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
    last: dict[str, dict[str, Any]] = history[-1]["sites"] if history else {}
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
        records[name] = dict(last[name])
    for late in inquiry.late:
        spend = None if late.answer is None else late.answer.reply.spend
        if spend is not None and records[late.site]["statement"] is None:
            records[late.site] |= {"statement": spend, "epsilon": spend["epsilon"]}
    for name, record in records.items():
        # What was spent before is still spent; null would read as infinite.
        if name in inquiry.answers and record["statement"] is None and name in last:
            record["epsilon"] = last[name]["epsilon"]
    return dict(sorted(records.items()))


def left_for_good(history: History) -> dict[str, str]:
    """Sites that refused for good, and why."""
    last: dict[str, dict[str, Any]] = history[-1]["sites"] if history else {}
    return {
        name: site["reason"]
        for name, site in last.items()
        if site["status"] == "refused" and site["reason"] and Reason(site["reason"]).for_good
    }
