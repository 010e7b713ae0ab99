"""A site's answer to a training request: what it says, and whether it can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Message

from common import wire
from common.messages import Reason, Recipe, Status, TrainReply, Weights
from server.bounds import Bound, Move
from server.spend import SpendTracker


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What is known of one site after one round.

    Attributes:
        reply: as the site gave it; without weights where they are in quarantine.
        problems: what was wrong with it, for people.
        broke_off: the site's work did, or its node is gone: it may be asked again.
    """

    reply: TrainReply
    problems: tuple[str, ...] = ()
    broke_off: bool = False

    @property
    def weights(self) -> Weights | None:
        """Trained weights that were found sound."""
        return self.reply.weights

    @property
    def left(self) -> bool:
        """Whether the site refused for good."""
        reason = self.reply.reason
        return self.reply.status is Status.refused and reason is not None and reason.for_good

    def record(self) -> dict[str, Any]:
        """As in the records of rounds."""
        reply = self.reply
        return {
            "status": reply.status.value,
            "epsilon": None if reply.spend is None else reply.spend["epsilon"],
            "reason": None if reply.reason is None else reply.reason.value,
        }


def none_from(site: str, reason: Reason) -> Answer:
    """Nothing came from ``site``."""
    reply = TrainReply(site=site, status=Status.failed, num_patients=0, reason=reason)
    return Answer(reply=reply, broke_off=True)


def refused_by(site: str, reason: Reason) -> Answer:
    """The gate of ``site`` answered: no code of the run's bundle has run there."""
    reply = TrainReply(site=site, status=Status.refused, num_patients=0, reason=reason)
    return Answer(reply=reply)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What an honest answer to one request looks like.

    Attributes:
        site: who was asked.
        num_patients: as the site described itself.
        recipe: that it was to follow.
        weights: that it was to start from.
        bound: how far it can have moved them.
    """

    site: str
    num_patients: int
    recipe: Recipe
    weights: Weights = field(repr=False)
    bound: Bound

    def read(self, node: int, message: Message, spend: SpendTracker) -> Answer:
        """The answer in ``message``, which came for ``node``; what is bad in it goes nowhere.

        A sound spend statement counts even if the weights beside it are bad: what it says was
        spent is spent.
        """
        if message.has_error():
            # Flower itself answers for a node that is gone.
            from_site = message.metadata.src_node_id == node
            if from_site and message.error.code == wire.UNAPPROVED_ERROR:
                return refused_by(self.site, Reason.unapproved_code)
            return none_from(self.site, Reason.internal_error if from_site else Reason.no_reply)
        try:
            reply = wire.read_reply(message.content)
        except ValueError:
            return self._quarantined(None, Reason.unreadable)
        if reply.site != self.site:
            return self._quarantined(None, Reason.another_site)
        problems = spend.take(reply, self.recipe)
        if problems:
            return self._quarantined(None, Reason.bad_statement, problems)
        reason, problem = self._judge(reply)
        if reason is not None:
            return self._quarantined(reply, reason, (problem,))
        return Answer(reply=reply)

    def _judge(self, reply: TrainReply) -> tuple[Reason | None, str]:
        """What is wrong with the weights, as a code and in words."""
        if reply.weights is None:
            return None, ""
        if reply.num_patients != self.num_patients:
            return Reason.bad_request, "num_patients: changed during the run"
        if _shapes(reply.weights) != _shapes(self.weights):
            return Reason.wrong_shape, "weights: names or shapes are not the model's"
        if not all(np.isfinite(value).all() for value in reply.weights.values()):
            return Reason.not_finite, "weights: not finite"
        move = Move.between(self.weights, reply.weights)
        if self.bound.passed_by(move):
            return Reason.too_large, (
                f"update: norm {move.norm:.3g} of at most {self.bound.norm:.3g}, largest change "
                f"{move.largest:.3g} of at most {self.bound.largest:.3g}"
            )
        return None, ""

    def _quarantined(
        self, reply: TrainReply | None, reason: Reason, problems: tuple[str, ...] = ()
    ) -> Answer:
        failed = TrainReply(site=self.site, status=Status.failed, num_patients=0, reason=reason)
        if reply is not None:
            failed = replace(failed, spend=reply.spend)
        return Answer(reply=failed, problems=problems)


def _shapes(weights: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in weights.items()}
