"""How updates are put together, and what of the model stays at the hospitals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from common.config.check import require, require_positive


class StrategyName(Enum):
    """How the server turns updates into the next model."""

    fedavg = "fedavg"
    fedavgm = "fedavgm"
    fedprox = "fedprox"
    fedadam = "fedadam"
    fedyogi = "fedyogi"
    fedmedian = "fedmedian"
    trimmed_mean = "trimmed_mean"
    krum = "krum"
    scaffold = "scaffold"

    @property
    def averages(self) -> bool:
        """Whether the server starts from a weighted mean of the updates."""
        return self not in {StrategyName.fedmedian, StrategyName.trimmed_mean, StrategyName.krum}

    @property
    def is_the_mean(self) -> bool:
        """Whether the next model is the weighted mean of the hospitals' models, nothing else."""
        return self in {StrategyName.fedavg, StrategyName.fedprox}


class Weighting(Enum):
    """What a hospital counts in a mean: never its images, classes or groups."""

    patients = "patients"
    equal = "equal"


class Personal(Enum):
    """Layers that each hospital keeps for itself."""

    none = "none"
    head = "head"
    norms = "norms"


@dataclass(kw_only=True)
class SiteDpConfig:
    """Privacy of a whole hospital towards who gets the model, beside that of its patients.

    The server bounds each hospital's update to ``clip_norm`` and adds noise of
    ``noise_multiplier`` times what one hospital can change. Off without ``noise_multiplier``.
    """

    noise_multiplier: float | None = None
    clip_norm: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clip_norm"):
            require_positive(f"strategy.site_dp.{name}", getattr(self, name))
        require(0 < self.delta < 1, "strategy.site_dp.delta", self.delta, "between 0 and 1")


@dataclass(kw_only=True)
class StrategyConfig:
    """Aggregation. What a strategy does not name it does not use.

    ``server_learning_rate`` is 1 for fedavgm and scaffold and 0.01 for fedadam and fedyogi if it
    is not set. fedmedian, trimmed_mean and krum take no ``weighting``: each hospital is one vote.
    ``trim`` is the share that trimmed_mean drops at each end, ``num_malicious`` how many hospitals
    krum holds out against, ``proximal_mu`` the pull of fedprox towards the shared model.
    After the last round each hospital trains the model ``local_steps_after`` steps on for itself.
    """

    name: StrategyName = StrategyName.fedavg
    weighting: Weighting = Weighting.patients
    server_learning_rate: float | None = None
    server_momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    proximal_mu: float = 0.1
    trim: float = 0.2
    num_malicious: int = 0
    personal: Personal = Personal.none
    local_steps_after: int = 0
    site_dp: SiteDpConfig = field(default_factory=SiteDpConfig)

    def __post_init__(self) -> None:
        require_positive("strategy.server_learning_rate", self.server_learning_rate)
        require_positive("strategy.tau", self.tau)
        for name in ("server_momentum", "beta_1", "beta_2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"strategy.{name}", value, "must be at least 0 and below 1")
        mu = self.proximal_mu
        require(0 <= mu < math.inf, "strategy.proximal_mu", mu, "must be finite and at least 0")
        require(0 <= self.trim < 0.5, "strategy.trim", self.trim, "at least 0 and below 0.5")
        malicious = self.num_malicious
        require(malicious >= 0, "strategy.num_malicious", malicious, "must be at least 0")
        after = self.local_steps_after
        require(after >= 0, "strategy.local_steps_after", after, "must be at least 0")
        require(
            self.site_dp.noise_multiplier is None or self.name.averages,
            "strategy.site_dp.noise_multiplier",
            self.site_dp.noise_multiplier,
            f"its noise is for a mean, and {self.name.value} is none; use another strategy",
        )

    @property
    def learning_rate(self) -> float:
        """Of the server's step."""
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        adaptive = self.name in {StrategyName.fedadam, StrategyName.fedyogi}
        return 0.01 if adaptive else 1.0

    @property
    def mu(self) -> float:
        """Strength of the proximal term that hospitals are asked for."""
        return self.proximal_mu if self.name is StrategyName.fedprox else 0.0
