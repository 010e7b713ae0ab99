"""How updates become the next model: Flower's strategies, fed in order of site names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)

from common import wire
from common.config import StrategyConfig, StrategyName, Weighting
from common.errors import RunFailed
from common.messages import Recipe, Status, TrainReply, Weights
from server.scaffold import Scaffold
from server.site_dp import SiteNoise

State = dict[str, Weights]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """One site's part of a round."""

    weights: Weights = field(repr=False)
    num_patients: int


def build(config: StrategyConfig, recipe: Recipe) -> Strategy:
    """Flower's strategy of that name."""
    mean: Any = {"fraction_evaluate": 0.0, "weighted_by_key": wire.WEIGHT_KEY}
    rate = config.learning_rate
    betas: Any = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    match config.name:
        case StrategyName.fedavg:
            return FedAvg(**mean)
        case StrategyName.fedprox:
            return FedProx(**mean, proximal_mu=config.mu)
        case StrategyName.fedavgm:
            return FedAvgM(
                **mean, server_learning_rate=rate, server_momentum=config.server_momentum
            )
        case StrategyName.fedadam:
            return FedAdam(**mean, **betas, eta=rate, tau=config.tau)
        case StrategyName.fedyogi:
            return FedYogi(**mean, **betas, eta=rate, tau=config.tau)
        case StrategyName.fedmedian:
            return FedMedian(**mean)
        case StrategyName.trimmed_mean:
            return FedTrimmedAvg(**mean, beta=config.trim)
        case StrategyName.krum:
            return Krum(**mean, num_malicious_nodes=config.num_malicious)
        case StrategyName.scaffold:
            length = recipe.steps * recipe.learning_rate
            return Scaffold(length=length, total=1.0, server_learning_rate=rate)


class Aggregator:
    """A strategy with what it remembers from round to round.

    Sums run in order of site names, whatever the order of arrival: floating-point addition does
    not commute across more than two terms, and equal runs must give equal weights.

    Args:
        config: the strategy.
        recipe: that the sites follow.
        noise: of site-level privacy, if there is to be any.
    """

    def __init__(
        self, config: StrategyConfig, recipe: Recipe, noise: SiteNoise | None = None
    ) -> None:
        self._strategy = build(config, recipe)
        self._equal = config.weighting is Weighting.equal
        self._noise = noise

    @property
    def control(self) -> Weights:
        """The control variate that goes with the next request; empty without one."""
        return dict(self._strategy.control) if isinstance(self._strategy, Scaffold) else {}

    def next_weights(
        self,
        round_number: int,
        current: Weights,
        contributions: Mapping[str, Contribution],
        patients: Mapping[str, int],
    ) -> Weights:
        """The next model.

        Args:
            round_number: from 1.
            current: the model that the round began with.
            contributions: by site name.
            patients: of every site that was ever seen in the run, by name.

        Raises:
            RunFailed: if the strategy returns nothing, or no finite weights.
        """
        shares = {
            name: (contributions[name].weights, self._weight(contributions[name].num_patients))
            for name in sorted(contributions)
        }
        if self._noise is not None:
            mean = self._noise.mean(round_number, current, shares)
            shares = {"": (mean, sum(weight for _, weight in shares.values()))}
        base = self._begin(current, patients)
        messages = [_message(_minus(weights, base), weight) for weights, weight in shares.values()]
        arrays, _ = self._strategy.aggregate_train(round_number, messages)
        if arrays is None:
            raise RunFailed(f"round {round_number}: the strategy returned no weights")
        weights = _plus(wire.from_arrays(arrays), base)
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise RunFailed(f"round {round_number}: the strategy returned weights without bound")
        return {name: weights[name] for name in sorted(weights)}

    def state(self) -> State:
        """What the strategy remembers, as arrays by kind and name of weight."""
        match self._strategy:
            case FedAdam() | FedYogi() as adaptive:
                moments = {"first": adaptive.m_t, "second": adaptive.v_t}
                return {kind: dict(value) for kind, value in moments.items() if value}
            case FedAvgM() as momentum if momentum.momentum_vector is not None:
                return {"momentum": dict(zip(self._names, momentum.momentum_vector, strict=True))}
            case Scaffold() as scaffold if scaffold.control:
                return {"control": dict(scaffold.control)}
            case _:
                return {}

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        match self._strategy:
            case FedAdam() | FedYogi() as adaptive if state:
                adaptive.m_t, adaptive.v_t = dict(state["first"]), dict(state["second"])
            case FedAvgM() as momentum if state:
                momentum.momentum_vector = [
                    state["momentum"][name] for name in sorted(state["momentum"])
                ]
            case Scaffold() as scaffold:
                scaffold.control = dict(state.get("control", {}))
            case _:
                pass

    def _weight(self, num_patients: int) -> int:
        return 1 if self._equal else num_patients

    def _begin(self, current: Weights, patients: Mapping[str, int]) -> Weights:
        """Tell the strategy where the round began; returns what updates are taken from.

        Flower does the former in `configure_train`, which would also choose nodes among whoever is
        connected. Krum compares distances by squares of whole weights in 32 bits, where the
        differences between sites drown: it gets updates instead.
        """
        self._names = sorted(current)
        match self._strategy:
            case FedAdam() | FedYogi() as adaptive:
                adaptive.current_arrays = dict(current)
            case FedAvgM() as momentum:
                momentum.current_arrays = wire.to_arrays(current)
            case Scaffold() as scaffold:
                scaffold.current = dict(current)
                scaffold.total = float(sum(map(self._weight, patients.values())))
            case Krum():
                return current
            case _:
                pass
        return {}


def _minus(weights: Weights, base: Weights) -> Weights:
    return {n: v - base[n] if n in base else v for n, v in weights.items()}


def _plus(weights: Weights, base: Weights) -> Weights:
    return {n: v + base[n] if n in base else v for n, v in weights.items()}


def _message(weights: Weights, weight: int) -> Message:
    """Only what was checked reaches the strategy, not what else a message carried."""
    reply = TrainReply(site="", status=Status.trained, num_patients=weight, weights=weights)
    return wire.message(wire.reply_content(reply), node=1, kind="train")
