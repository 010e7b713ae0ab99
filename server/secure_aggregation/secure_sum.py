"""One round as a secure sum over Flower's messages: five questions, and one step of the model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Message

from common import wire
from common.messages import Reason, Recipe, Status, TrainReply, Weights
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.conversation import Question, SecureAnswer, Step
from common.secure_aggregation.mechanism import Mechanism, Parties, design
from common.secure_aggregation.roster import Roster as Identities
from common.secure_aggregation.rounding import out_of_ring
from common.secure_aggregation.server_round import ServerRound
from common.secure_aggregation.task import terms_of
from server.answer import Answer, none_from, refused_by
from server.inquiry import Inquiry

_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Summed:
    """What one secure sum gave.

    Attributes:
        weights: of the model after one step along the sum, for a strategy to take from there.
        sites: in the sum.
    """

    weights: Weights = field(repr=False)
    sites: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureSums:
    """How the rounds of a run are summed (public).

    Attributes:
        identities: of all sites.
        parties: how many of them may fail.
        mechanism: the same in every round.
    """

    identities: Identities
    parties: Parties
    mechanism: Mechanism

    @classmethod
    def of(
        cls,
        identities: Identities,
        parties: Parties,
        recipe: Recipe,
        weights: Weights,
        patients: int,
    ) -> SecureSums:
        """For a recipe over so many patients of all sites.

        Raises:
            UsageError: if there is no such mechanism.
        """
        mechanism = design(
            noise_multiplier=recipe.noise_multiplier,
            num_weights=sum(value.size for value in weights.values()),
            num_patients=patients,
            sampling_rate=recipe.sampling_rate,
            parties=parties,
        )
        return cls(identities=identities, parties=parties, mechanism=mechanism)

    def hold(self, inquiry: Inquiry, nodes: Mapping[str, int]) -> Summed | None:
        """Ask the sites in five steps; none if too few were left in one of them.

        The answers of all sites are in ``inquiry`` afterwards.
        """
        held = _Round(self, inquiry, nodes)
        try:
            return held.summed()
        except Aborted as error:
            number = inquiry.request.round
            inquiry.observe({"event": "discarded", "round": number, "problem": str(error)})
            return None
        finally:
            held.settle()


class _Round:
    def __init__(self, sums: SecureSums, inquiry: Inquiry, nodes: Mapping[str, int]) -> None:
        self._sums, self._inquiry = sums, inquiry
        self._nodes = {n: node for n, node in nodes.items() if n in inquiry.expected}
        self._terms = terms_of(inquiry.request, sums.mechanism, sums.parties, sums.identities)
        self._server = ServerRound(self._terms, sums.identities)
        self._failed: dict[str, Answer] = {}
        self._spent: dict[str, TrainReply] = {}

    def summed(self) -> Summed:
        server = self._server
        self._ask(Step.keys, dict.fromkeys(self._nodes, b""))
        self._ask(Step.shares, dict.fromkeys(self._nodes, server.keys()))
        self._ask(Step.masked, server.shares())
        self._ask(Step.agreement, dict.fromkeys(server.survivors, server.survivors_list()))
        self._ask(Step.reveal, dict.fromkeys(server.survivors, server.agreements()))
        return Summed(weights=self._stepped(), sites=server.survivors)

    def settle(self) -> None:
        """Write down what is known of every site.

        A site that fell silent after its vector was in has trained all the same.
        """
        inquiry = self._inquiry
        for site in sorted(inquiry.sites):
            if site in self._server.survivors:
                answer = Answer(reply=self._spent[site])
            else:
                answer = self._failed.get(site) or none_from(site, Reason.not_connected)
            inquiry.settle(site, answer)

    def _ask(self, step: Step, bodies: Mapping[str, bytes]) -> None:
        """Ask those sites that have not failed, and take in what they answer in time.

        A site whose work broke off is asked the same again: what it has said before it repeats,
        and what it has charged it does not do twice.
        """
        inquiry, number = self._inquiry, self._inquiry.request.round
        deadline = time.monotonic() + inquiry.federation.timeout_seconds
        due = dict.fromkeys(sorted(set(bodies) - set(self._failed)), 0.0)
        tries = dict.fromkeys(due, 0)
        waiting: set[str] = set()
        while due or waiting:
            for site in [site for site, moment in due.items() if moment <= time.monotonic()]:
                del due[site]
                tries[site] += 1
                inquiry.attempts[site] = max(inquiry.attempts.get(site, 0), tries[site])
                if self._send(step, site, bodies[site]):
                    waiting.add(site)
                else:
                    self._failed[site] = none_from(site, Reason.not_connected)
            for (site, asked_in, _), message in inquiry.mailbox.arrived():
                if asked_in != number or site not in waiting:
                    continue
                waiting.discard(site)
                again = message.has_error() and tries[site] <= inquiry.federation.retries
                if again and message.error.code != wire.UNAPPROVED_ERROR:
                    due[site] = time.monotonic() + inquiry.federation.retry_seconds
                else:
                    self._hear(step, site, message)
            if time.monotonic() > deadline:
                self._failed |= {
                    site: none_from(site, Reason.no_reply) for site in waiting | {*due}
                }
                return
            if due or waiting:
                time.sleep(_POLL_SECONDS)

    def _send(self, step: Step, site: str, body: bytes) -> bool:
        inquiry, node = self._inquiry, self._nodes[site]
        question = Question(step=step, terms=self._terms, mechanism=self._sums.mechanism, body=body)
        request = inquiry.request if step is Step.masked else None
        content = wire.secure_content(question.to_bytes(), request)
        tag = (site, inquiry.request.round, node)
        return inquiry.mailbox.send(content, node=node, kind=wire.SECURE, tag=tag)

    def _hear(self, step: Step, site: str, message: Message) -> None:
        """Take in one site's answer; one that is no good makes the site a missing one."""
        if message.has_error():
            from_site = message.metadata.src_node_id == self._nodes[site]
            if from_site and message.error.code == wire.UNAPPROVED_ERROR:
                self._failed[site] = refused_by(site, Reason.unapproved_code)
                return
            reason = Reason.internal_error if from_site else Reason.no_reply
            self._failed[site] = none_from(site, reason)
            return
        try:
            answer = SecureAnswer.from_bytes(wire.read_secure(message.content)[0])
            self._judge(step, site, answer)
        except (Aborted, ValueError) as error:
            failed = none_from(site, Reason.unreadable)
            self._failed.setdefault(site, replace(failed, problems=(str(error),)))

    def _judge(self, step: Step, site: str, answer: SecureAnswer) -> None:
        expected = self._inquiry.expected[site]
        if answer.site != site or answer.num_patients != expected.num_patients:
            self._failed[site] = none_from(site, Reason.another_site)
            return
        reply = TrainReply(
            site=site,
            status=Status.trained if answer.reason is None else Status.refused,
            num_patients=answer.num_patients,
            reason=answer.reason,
            spend=answer.spend,
        )
        if step is Step.masked:
            problems = self._inquiry.spend.take(reply, expected.recipe)
            if problems:
                failed = none_from(site, Reason.bad_statement)
                self._failed[site] = replace(failed, problems=problems)
                return
            self._spent[site] = reply
        if answer.reason is not None:
            self._failed[site] = Answer(reply=reply)
            return
        take = {
            Step.keys: self._server.take_keys,
            Step.shares: self._server.take_shares,
            Step.masked: self._server.take_masked,
            Step.agreement: self._server.take_agreement,
            Step.reveal: self._server.take_reveal,
        }[step]
        take(site, answer.body)

    def _stepped(self) -> Weights:
        """One step of gradient descent along the mean gradient, in 64 bits."""
        request, mechanism = self._inquiry.request, self._sums.mechanism
        recipe = request.recipe
        patients = sum(self._inquiry.expected[n].num_patients for n in self._server.survivors)
        unit = recipe.max_grad_norm / mechanism.clip
        total = out_of_ring(self._server.total()) * unit
        length = recipe.learning_rate / (recipe.sampling_rate * patients)
        stepped: Weights = {}
        start = 0
        for name in sorted(request.weights):
            value = request.weights[name]
            move = total[start : start + value.size].reshape(value.shape) * length
            stepped[name] = (value - move).astype(np.float32)
            start += value.size
        return stepped
