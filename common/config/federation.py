"""Who takes part, who holds which patient, and how updates are put together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from common.config.check import require, require_positive
from common.errors import UsageError


@dataclass(kw_only=True)
class FederationConfig:
    """Who takes part and for how long; ``timeout_seconds`` bounds the wait for one round."""

    num_sites: int = 3
    rounds: int = 8
    steps_per_round: int = 5
    timeout_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("num_sites", "rounds", "steps_per_round"):
            value = getattr(self, name)
            require(value >= 1, f"federation.{name}", value, "must be at least 1")
        require_positive("federation.timeout_seconds", self.timeout_seconds)


class StrategyName(Enum):
    """How the server turns updates into the next model (Flower's classes)."""

    fedavg = "fedavg"


@dataclass(kw_only=True)
class StrategyConfig:
    """Aggregation; sites weigh by their number of patients, never by images or classes."""

    name: StrategyName = StrategyName.fedavg


class PartitionKind(Enum):
    """How a study's training patients are divided among simulated hospitals."""

    auto = "auto"
    natural = "natural"
    equal = "equal"
    size_skew = "size_skew"
    label_skew = "label_skew"
    feature_skew = "feature_skew"


@dataclass(kw_only=True)
class PartitionConfig:
    """Who holds which patient; always whole patients, each at exactly one hospital.

    ``auto`` is ``natural`` where the study names ``federation.num_sites`` hospitals, else
    ``equal``. ``by`` names what ``natural`` and ``feature_skew`` go by: the study's site column
    (``site``) or one of its groups, such as ``manufacturer`` or ``sex``. ``alpha`` is the
    concentration of the Dirichlet shares of ``label_skew`` and ``feature_skew`` (small: each label
    or feature is at few hospitals), ``ratio`` how many times larger each hospital of ``size_skew``
    is than the next.
    """

    kind: PartitionKind = PartitionKind.auto
    by: str | None = None
    alpha: float = 0.5
    ratio: float = 2.0

    def __post_init__(self) -> None:
        require_positive("partition.alpha", self.alpha)
        require(
            math.isfinite(self.ratio) and self.ratio >= 1, "partition.ratio", self.ratio, "from 1"
        )
        if self.kind is PartitionKind.feature_skew and not self.by:
            raise UsageError(
                "partition.by is not set: name a group of the study, such as partition.by=sex"
            )
