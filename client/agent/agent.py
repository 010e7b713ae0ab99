"""The agent: policy and audit around a site that would otherwise answer anybody."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from client.agent import pinned, rules, schema
from client.agent.approval import Approvals
from client.agent.audit import AuditLog, Kind
from client.agent.pinned import Pin, PinnedRoster
from client.agent.policy import Policy
from client.agent.policy_file import PolicyFile, Reading
from client.agent.rules import Work
from client.agent.schema import Question
from client.site import event_of
from common.config import Trust
from common.errors import LedgerError
from common.messages import Reason, SiteDescription, Status, TrainReply, TrainRequest
from common.privacy.budget import Budget
from common.privacy.events import dump
from common.secure_aggregation import conversation, task
from common.secure_aggregation.conversation import SecureAnswer, Step
from common.secure_aggregation.roster import Roster

_log = logging.getLogger("fedward.agent")


class HeldSite(Protocol):
    """A site whose budget can be set: `client.site.Site`."""

    def describe(self) -> SiteDescription:
        """Public facts about the site."""
        ...

    def hold_to(self, budget: Budget) -> None:
        """Set the cap."""
        ...

    def train(self, request: TrainRequest) -> TrainReply:
        """Train one round, or say why not."""
        ...


class AnswersSums(Protocol):
    """A site's part in secure sums: `client.secure_aggregation.secure_site.SecureSite`."""

    def answer(self, data: bytes, request: TrainRequest | None = None) -> bytes:
        """The answer to one question."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """What an agent needs for secure sums.

    Attributes:
        roster: file of the roster that is pinned here, if there is one.
        part: the site's part in sums among the hospitals of a roster.
    """

    roster: Path | None
    part: Callable[[Roster], AnswersSums]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What goes back through the socket: a status of HTTP, and a message of `schema`.

    Without content, ``reason`` is all there is to say.
    """

    status: int
    content: bytes = field(default=b"", repr=False)
    reason: Reason | None = None


@dataclass(kw_only=True, slots=True)
class _Outcome:
    """What an answer came to, for the log."""

    decision: str
    reason: Reason | None = None
    answer: Answer
    reply: TrainReply | None = None
    spend: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asker:
    """Who asks: the user, as the operating system says, and the bundle that it names."""

    uid: int | None
    named: str | None


def _local_now() -> datetime:
    return datetime.now(UTC).astimezone()


class Agent:
    """Answers what comes through the socket.

    Guarantees:
        Nothing is trained that the policy, read at that moment, does not allow, or that is not in
        the audit log before; nothing leaves that is not in the audit log. If either cannot be
        read or written, everything is refused. What leaves is a message of `schema` or a code.
        With ``gate_uid``, only that user's process is answered, and a request counts only if it
        claims the bundle that this process names; without, the claim of who asks is believed.
        A secure sum is held to the roster that is pinned here and to what the policy insists on at
        every step; keys, masks and shares are the site's, and none of them passes the socket.
    """

    def __init__(
        self,
        *,
        site: HeldSite,
        work: Work,
        policy: Path,
        approvals: Approvals,
        audit: AuditLog,
        sums: Sums | None = None,
        gate_uid: int | None = None,
        now: Callable[[], datetime] = _local_now,
    ) -> None:
        self._site, self._work, self._approvals = site, work, approvals
        self._audit, self._now, self._gate_uid = audit, now, gate_uid
        self._policy = PolicyFile(policy, self._note_policy)
        self._sums = sums
        self._pin = PinnedRoster(None if sums is None else sums.roster, self._look, self._note_pin)
        self._lock = threading.Lock()  # one training at a time, under the policy it was held to

    def look_at_policy(self) -> Reading:
        """Reads policy and roster; a change since the last reading goes to the audit log.

        Raises:
            LedgerError: The change could not be logged.
        """
        self._pin.current()
        return self._policy.current()

    def answer(
        self, kind: str, content: bytes, uid: int | None = None, named: str | None = None
    ) -> Answer:
        """The answer to a question of ``kind`` (``describe``, ``train`` or ``secure``).

        Args:
            kind: What was asked.
            content: The message, of a size that was bounded before.
            uid: The user whose process asks, as the operating system says.
            named: The bundle in whose name it says it asks, beside the message.
        """
        try:
            with nullcontext() if kind == "describe" else self._lock:
                return self._logged(kind, content, _Asker(uid=uid, named=named))
        except LedgerError:
            _log.exception("the audit log cannot be written; refused")
            return self._refused(kind, Reason.ledger_unavailable).answer
        except Exception:  # the boundary: nothing of it may leave
            _log.exception("a request failed")
            return Answer(status=500, reason=Reason.internal_error)

    def _logged(self, kind: str, content: bytes, asker: _Asker) -> Answer:
        began = time.monotonic()
        reading = self._policy.current()
        question: Question | None = None
        try:
            question = schema.read_question(content, kind)
        except ValueError:
            _log.info("a request did not fit the schema")  # its text is the server's: not logged
        asked = self._audit.append(Kind.asked, _asked(kind, question, asker, reading))
        try:
            if self._is_vouched(question, asker):
                outcome = self._decide(kind, question, reading)
            else:
                outcome = self._refused(kind, Reason.unapproved_code)
        except LedgerError:  # of the approvals; a site answers for its own ledger
            _log.exception("the approvals cannot be used; refused")
            outcome = self._refused(kind, Reason.ledger_unavailable)
        except Exception:
            _log.exception("a request failed")
            failed = Answer(status=500, reason=Reason.internal_error)
            outcome = _Outcome(decision="failed", reason=Reason.internal_error, answer=failed)
        row: dict[str, object] = {
            "asked": asked,
            "decision": outcome.decision,
            "reason": None if outcome.reason is None else outcome.reason.value,
            "seconds": round(time.monotonic() - began, 3),
        }
        if question is not None and question.train is not None and outcome.reply is not None:
            row |= _trained(question.train, outcome.reply)
        if outcome.spend is not None:
            row |= {"update_norm": None, "ledger": _place(outcome.spend)}
        self._audit.append(Kind.answered, row)
        return outcome.answer

    def _is_vouched(self, question: Question | None, asker: _Asker) -> bool:
        if self._gate_uid is None or question is None:
            return self._gate_uid in {None, asker.uid}
        return asker.uid == self._gate_uid and asker.named == question.bundle

    def _decide(self, kind: str, question: Question | None, reading: Reading) -> _Outcome:
        policy = reading.policy
        if policy is None:
            return self._refused(kind, Reason.policy_unreadable)
        if question is None:
            return self._refused(kind, Reason.bad_request)
        if not self._approvals.allow(question.bundle):
            return self._refused(kind, Reason.unapproved_code)
        if question.sums is not None:
            return self._sum(question, question.sums, policy)
        if question.train is None:
            content = schema.description_bytes(self._site.describe())
            return _Outcome(decision="described", answer=Answer(status=200, content=content))
        reason = rules.closed(policy, self._now()) or rules.refusal(
            policy, self._work, question.train.recipe
        )
        if reason is not None:
            return self._refused(kind, reason)
        self._site.hold_to(policy.studies[self._work.study])
        reply = self._site.train(question.train)
        return _Outcome(
            decision=reply.status.value,
            reason=reply.reason,
            answer=Answer(status=200, content=schema.reply_bytes(reply)),
            reply=reply,
        )

    def _sum(self, question: Question, asked: conversation.Question, policy: Policy) -> _Outcome:
        """A step of a secure sum; what the policy does not allow is refused uncharged."""
        work, roster, trust = self._work, self._pin.current().roster, Trust.secure_aggregation
        reason = rules.unsuited(policy, work, trust) or rules.unpinned(policy, asked.terms, roster)
        if asked.step in {Step.keys, Step.shares, Step.masked}:  # once charged, a round is finished
            reason = reason or rules.closed(policy, self._now())
        if question.train is not None:
            reason = reason or rules.refusal(policy, work, question.train.recipe, trust)
        if reason is not None or roster is None or self._sums is None:
            return self._refused("secure", reason or Reason.no_roster)
        self._site.hold_to(policy.studies[work.study])
        said = self._sums.part(roster).answer(question.data, question.train)
        found = SecureAnswer.from_bytes(said)
        done = "trained" if asked.step is Step.masked else "answered"
        return _Outcome(
            decision=done if found.reason is None else "refused",
            reason=found.reason,
            answer=Answer(status=200, content=schema.secure_reply_bytes(said)),
            spend=found.spend,
        )

    def _refused(self, kind: str, reason: Reason) -> _Outcome:
        status = 400 if reason is Reason.bad_request else 403
        answer = Answer(status=status, reason=reason)
        if kind == "secure":
            about = self._site.describe()
            said = SecureAnswer(site=about.site, num_patients=about.num_patients, reason=reason)
            content = schema.secure_reply_bytes(said.to_bytes())
            answer = Answer(status=status, content=content, reason=reason)
        if kind == "train":
            about = self._site.describe()
            reply = TrainReply(
                site=about.site,
                status=Status.refused,
                num_patients=about.num_patients,
                reason=reason,
            )
            answer = Answer(status=status, content=schema.reply_bytes(reply), reason=reason)
        return _Outcome(decision="refused", reason=reason, answer=answer)

    def _note_policy(self, reading: Reading, before: Policy | None) -> None:
        readable = reading.policy is not None
        changed = reading.policy.changed_from(before) if reading.policy else ()
        if not readable:
            _log.error("the policy cannot be used, all is refused: %s", reading.problem)
        fields = {"policy": reading.sha256, "readable": readable, "changed": list(changed)}
        self._audit.append(Kind.policy, fields)

    def _look(self, path: Path | None) -> Pin:
        name, key = self._site.describe().site, self._approvals.key.public_key
        return pinned.read(path, name=name, public_key=key)

    def _note_pin(self, pin: Pin, before: Pin) -> None:
        if pin.roster is None:
            policy = self._policy.current().policy
            wanted = policy is None or policy.trust.shares_noise
            level = logging.WARNING if wanted else logging.INFO
            _log.log(level, "no roster can be used, secure sums are refused: %s", pin.problem)
        if pin.digest != before.digest:
            names = [] if pin.roster is None else list(pin.roster.names)
            self._audit.append(Kind.roster, {"roster": pin.digest, "hospitals": names})


def _asked(
    kind: str, question: Question | None, asker: _Asker, reading: Reading
) -> dict[str, object]:
    row: dict[str, object] = {
        "what": kind,
        "uid": asker.uid,
        "bundle": None if question is None else question.bundle,
        "policy": reading.sha256,
    }
    if question is None:
        return row
    train, sums = question.train, question.sums
    if sums is not None:
        terms = sums.terms
        row |= {"run": terms.run_id, "round": terms.round, "step": sums.step.value}
        row |= {"roster": terms.roster, "colluders": terms.max_colluders}
        if train is not None:
            row["event"] = dump(task.event_of(train.recipe, sums.mechanism))
    elif train is not None:
        row |= {"run": train.run_id, "round": train.round, "event": dump(event_of(train.recipe))}
    return row


def _trained(request: TrainRequest, reply: TrainReply) -> dict[str, object]:
    """What a training left behind: the size of the update, and where the ledger stood."""
    row: dict[str, Any] = {"update_norm": None, "ledger": None}
    if reply.weights is not None:
        squares = sum(
            float(np.square(value.astype(np.float64) - request.weights[name]).sum())
            for name, value in reply.weights.items()
        )
        row["update_norm"] = math.sqrt(squares)
    if reply.spend is not None:
        row["ledger"] = _place(reply.spend)
    return row


def _place(spend: Mapping[str, Any]) -> dict[str, Any]:
    """Where the ledger stood."""
    return {name: spend[name] for name in ("cohort", "length", "head")}
