"""One round's questions to the sites, and what comes back before its deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, MessageType

from common import wire
from common.config import FederationConfig
from common.messages import Reason, TrainRequest
from server.answer import Answer, Expected, none_from
from server.mailbox import Mailbox
from server.roster import Roster
from server.spend import SpendTracker

_POLL_SECONDS = 0.1

Asked = tuple[str, int, int]  # site, round, node


@dataclass(frozen=True, kw_only=True, slots=True)
class Late:
    """A reply that came after its round had ended.

    Attributes:
        answer: read where it is of the round before and the site has not answered since.
    """

    site: str
    round: int
    answer: Answer | None = None


@dataclass(kw_only=True)
class Inquiry:
    """Asks, asks again where work broke off, and collects until all answered or time is over.

    A site is asked again with the same request, so what it has done already it sends again, and
    no patient is charged twice.

    Attributes:
        sites: who takes part; only those of them that are connected are asked.
        expected: what their answers should look like, for those that have said who they are.
        before: what answers to the round before should look like, by site.
        answers: by site, as far as they have come.
        late: replies to earlier rounds.
        attempts: how often each site was asked.
    """

    request: TrainRequest
    sites: Collection[str]
    expected: Mapping[str, Expected]
    before: Mapping[str, Expected]
    mailbox: Mailbox[Asked]
    roster: Roster
    spend: SpendTracker
    federation: FederationConfig
    observe: Callable[[dict[str, Any]], None]
    answers: dict[str, Answer] = field(default_factory=dict[str, Answer])
    late: list[Late] = field(default_factory=list[Late])
    attempts: dict[str, int] = field(default_factory=dict[str, int])

    def hold(self, nodes: Mapping[str, int]) -> None:
        """Ask the connected ones of the sites, whose ``nodes`` are given, and listen."""
        deadline = time.monotonic() + self.federation.timeout_seconds
        content = wire.request_content(self.request)
        due = dict.fromkeys(sorted(set(nodes) & set(self.expected)), 0.0)
        broke_off: dict[str, Answer] = {}
        while time.monotonic() < deadline:
            for site in [site for site, moment in due.items() if moment <= time.monotonic()]:
                if site in nodes:
                    tag = (site, self.request.round, nodes[site])
                    self.mailbox.send(content, node=nodes[site], kind=MessageType.TRAIN, tag=tag)
                    self.attempts[site] = self.attempts.get(site, 0) + 1
                    del due[site]
            for (site, number, node), message in self.mailbox.arrived():
                answer = self._heard(site, number, node, message)
                if answer is None:
                    continue
                if answer.broke_off and self.attempts[site] <= self.federation.retries:
                    broke_off[site] = answer
                    due[site] = time.monotonic() + self.federation.retry_seconds
                else:
                    self.settle(site, answer)
            if not due and set(self.attempts) <= set(self.answers):
                break
            time.sleep(_POLL_SECONDS)
            nodes = self.roster.nodes() if due else nodes
        for site in sorted(set(self.sites) - set(self.answers)):
            reason = Reason.no_reply if site in self.attempts else Reason.not_connected
            silent = none_from(site, reason)
            self.settle(site, broke_off.get(site, silent) if site in due else silent)

    def _heard(self, site: str, number: int, node: int, message: Message) -> Answer | None:
        """The answer to this round's question, if that is what it is and the first."""
        if number == self.request.round:
            if site in self.answers or site not in self.expected:
                return None
            return self.expected[site].read(node, message, self.spend)
        answer = None
        fresh = number == self.request.round - 1 and site not in self.answers
        if fresh and site in self.before and not message.has_error():
            answer = self.before[site].read(node, message, self.spend)
        if not message.has_error():
            self.late.append(Late(site=site, round=number, answer=answer))
            self.observe({"event": "late", "site": site, "round": number})
        return None

    def settle(self, site: str, answer: Answer) -> None:
        """Take ``answer`` as what is known of the site."""
        self.answers[site] = answer
        event = {"event": "site", "round": self.request.round, "site": site}
        self.observe({**event, **answer.record()})
