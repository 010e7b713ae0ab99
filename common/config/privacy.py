"""The recipe of private training, and its bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from common.config.check import require, require_positive
from common.errors import UsageError

# Beyond these, 32 bits no longer hold what clipping promises.
SMALLEST_NORM, LARGEST_NORM = 1e-6, 1e6


class Mechanism(Enum):
    """How a site's update is made private."""

    dp_sgd = "dp_sgd"
    none = "none"


class Unit(Enum):
    """Whose presence the guarantee hides."""

    patient = "patient"
    image = "image"


class EngineName(Enum):
    """What computes clipped gradients; the ones of Opacus are references."""

    bookkeeping = "bookkeeping"
    opacus_hooks = "opacus_hooks"
    opacus_functorch = "opacus_functorch"
    opacus_ghost = "opacus_ghost"


class ClippingKind(Enum):
    """How one patient's gradient is bounded."""

    flat = "flat"
    automatic = "automatic"
    per_layer = "per_layer"


class TunedOn(Enum):
    """Whose data chose the settings of a run, beside the ones it trains on."""

    public = "public"
    private = "private"


class AccountantName(Enum):
    """Which accountant turns events into epsilon."""

    pld = "pld"
    rdp = "rdp"


@dataclass(kw_only=True)
class PrivacyConfig:
    """The recipe of private training.

    Exactly one of ``epsilon`` (a target: noise is calibrated for the planned rounds) and
    ``noise_multiplier`` (fixed noise: epsilon grows with the rounds) decides the noise.
    ``budget`` is each site's own cap, ``site_budgets`` that of single
    sites (``hospital-1:2.5``); ``budget=inf`` is none. Without
    either the cap is the target; with fixed noise there is no cap then.

    ``tuned_on`` says on whose data these settings were chosen: unset is on nobody's; ``private``
    marks the run, since what the choice cost its patients is in no ledger of it.
    """

    mechanism: Mechanism = Mechanism.dp_sgd
    epsilon: float | None = 8.0
    noise_multiplier: float | None = None
    budget: float | None = None
    site_budgets: list[str] = field(default_factory=list[str])
    delta: float | None = None
    unit: Unit = Unit.patient
    accountant: AccountantName = AccountantName.pld
    sampling_rate: float = 0.25
    max_grad_norm: float = 1.0
    clipping: ClippingKind = ClippingKind.flat
    images_per_patient: int = 4
    engine: EngineName = EngineName.bookkeeping
    tuned_on: TunedOn | None = None

    def __post_init__(self) -> None:
        for name in ("epsilon", "noise_multiplier", "max_grad_norm"):
            require_positive(f"privacy.{name}", getattr(self, name))
        require(
            SMALLEST_NORM <= self.max_grad_norm <= LARGEST_NORM,
            "privacy.max_grad_norm",
            self.max_grad_norm,
            f"must lie between {SMALLEST_NORM:g} and {LARGEST_NORM:g}",
        )
        if self.budget is not None and self.budget != math.inf:
            require_positive("privacy.budget", self.budget)
        for site, budget in self.caps().items():
            require_positive(f"privacy.site_budgets.{site}", budget)
        if self.delta is not None:
            require(0 < self.delta < 1, "privacy.delta", self.delta, "must lie between 0 and 1")
        require(
            0 < self.sampling_rate <= 1,
            "privacy.sampling_rate",
            self.sampling_rate,
            "must be above 0 and at most 1",
        )
        require(
            self.images_per_patient >= 1,
            "privacy.images_per_patient",
            self.images_per_patient,
            "must be at least 1",
        )
        if self.private and self.epsilon is None and self.noise_multiplier is None:
            raise UsageError("privacy.epsilon and privacy.noise_multiplier are both unset: set one")

    @property
    def epsilon_target(self) -> float | None:
        """What the noise is calibrated for; ``None`` without privacy or with fixed noise."""
        return self.epsilon if self.private and self.noise_multiplier is None else None

    def caps(self) -> dict[str, float]:
        """``site_budgets`` by site name.

        >>> PrivacyConfig(site_budgets=["hospital-1:2.5"]).caps()
        {'hospital-1': 2.5}
        """
        caps: dict[str, float] = {}
        for entry in self.site_budgets:
            site, _, cap = entry.rpartition(":")
            try:
                caps[site] = float(cap)
            except ValueError:
                site = ""
            require(bool(site), "privacy.site_budgets", entry, "must read SITE:EPSILON")
        return caps

    def budget_of(self, site: str) -> float:
        """A site's cap on epsilon; infinite where nothing bounds it."""
        if not self.private:
            return math.inf
        for cap in (self.caps().get(site), self.budget, self.epsilon_target):
            if cap is not None:
                return cap
        return math.inf

    @property
    def private(self) -> bool:
        """Whether updates carry a differential-privacy guarantee."""
        return self.mechanism is Mechanism.dp_sgd
