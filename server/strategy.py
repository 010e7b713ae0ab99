"""How updates become the next model: Flower's strategies, fed in order of site names."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, Strategy

from common import wire
from common.config import StrategyConfig, StrategyName
from common.errors import RunFailed
from common.messages import Weights


def build(config: StrategyConfig) -> Strategy:
    """Flower's strategy of that name, weighting sites by their number of patients."""
    match config.name:
        case StrategyName.fedavg:
            return FedAvg(fraction_evaluate=0.0, weighted_by_key=wire.WEIGHT_KEY)


def aggregate(strategy: Strategy, round_number: int, replies: Mapping[str, Message]) -> Weights:
    """The next model from trained replies by site name.

    Sums run in order of names, whatever the order of arrival: floating-point addition does not
    commute across more than two terms, and equal runs must give equal weights.

    Raises:
        RunFailed: if the strategy returns nothing.
    """
    arrays, _ = strategy.aggregate_train(round_number, [replies[site] for site in sorted(replies)])
    if arrays is None:
        raise RunFailed(f"round {round_number}: the strategy returned no weights")
    return wire.from_arrays(arrays)
