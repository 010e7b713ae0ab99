"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378), the server's half, as a Flower strategy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from common import wire
from common.messages import Weights


class Scaffold(FedAvg):
    """Option II of the paper. Sites send weights and nothing else.

    A site corrects each of its K steps by c - c_i and then sets c_i+ = c_i - c + (x - y_i)/(K lr),
    from the weights x that it was sent and y_i that it releases. So c_i+ - c_i does not depend on
    c_i, the server can compute it, and with d the weighted mean of y_i - x over the responders

        x+ = x + server_learning_rate d
        c+ = c + share (-d / (K lr) - c)

    where share is the responders' part of the weights of all sites. With equal weights these are
    the paper's formulas.

    Args:
        length: K times the sites' learning rate.
        total: weights in the mean of all sites that take part.
        server_learning_rate: of the step above.
    """

    def __init__(self, *, length: float, total: float, server_learning_rate: float) -> None:
        super().__init__(fraction_evaluate=0.0, weighted_by_key=wire.WEIGHT_KEY)
        self.current: Weights = {}
        self.control: Weights = {}
        self.total = total
        self._length = length
        self._rate = server_learning_rate

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See the class."""
        messages = list(replies)
        mean, metrics = super().aggregate_train(server_round, messages)
        if mean is None:
            return None, metrics
        share = sum(map(_weight, messages)) / self.total
        after: Weights = {}
        for name, value in wire.from_arrays(mean).items():
            moved = value - self.current[name]
            before = self.control.get(name, np.zeros_like(value))
            control = before + np.float32(share) * (-moved / np.float32(self._length) - before)
            self.control[name] = control.astype(np.float32)
            step = self.current[name] + np.float32(self._rate) * moved
            after[name] = step.astype(np.float32)
        return wire.to_arrays(after), metrics


def _weight(message: Message) -> float:
    record: Any = next(iter(message.content.metric_records.values()))
    return float(record[wire.WEIGHT_KEY])
