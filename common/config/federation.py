"""Who takes part, and who holds which patient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from common.config.check import require, require_positive
from common.errors import UsageError
from common.secure_aggregation.mechanism import Parties


class Trust(Enum):
    """Whom a hospital's noise must hold against.

    ``local``: each update is private on its own. ``secure_aggregation``: only sums of updates are
    seen, and the noise in a sum is shared out among the hospitals.
    """

    local = "local"
    secure_aggregation = "secure_aggregation"


class LateReplies(Enum):
    """What becomes of a reply that arrives after its round has ended; it is always reported."""

    discard = "discard"
    use = "use"


@dataclass(kw_only=True)
class FederationConfig:
    """Who takes part, for how long, and when a round or a run is given up.

    ``sites`` names the approved hospitals; without it a simulation takes all of its own. Whoever
    else connects is never asked to train. A round counts if ``min_sites`` of them, which hold
    ``min_patient_share`` of the patients of all that have ever said how many they have, gave an
    update; a run that can no longer have such a round ends.

    ``wait_seconds`` is how long the server waits for hospitals to be there: for all when a run
    begins, then for enough. ``timeout_seconds`` bounds a round. Within it a hospital whose work
    broke off is asked again up to ``retries`` times, after ``retry_seconds``. With
    ``late_replies=use`` an update of the round before counts for a hospital that has none for
    this one. The model is looked at every ``evaluate_every`` rounds, and after the last.

    With ``sites_per_round`` each round asks so many of the hospitals, drawn anew from the run's
    seed; ``min_patient_share`` of a round is then of the patients of those that were drawn. It
    saves work and nothing else: each round that a hospital trains in is charged in full.

    With ``trust=secure_aggregation`` the noise of a sum suffices with up to ``max_dropouts``
    hospitals missing from it and ``max_colluders`` telling the server all they know.
    """

    num_sites: int = 3
    sites: list[str] = field(default_factory=list[str])
    rounds: int = 8
    steps_per_round: int = 5
    sites_per_round: int | None = None
    min_sites: int = 1
    min_patient_share: float = 0.0
    wait_seconds: float = 600.0
    timeout_seconds: float = 3600.0
    retries: int = 2
    retry_seconds: float = 2.0
    late_replies: LateReplies = LateReplies.discard
    evaluate_every: int = 1
    trust: Trust = Trust.local
    max_dropouts: int = 0
    max_colluders: int = 0

    @property
    def parties(self) -> Parties:
        """Of a secure sum."""
        return Parties(
            num_sites=len(self.sites) or self.num_sites,
            max_dropouts=self.max_dropouts,
            max_colluders=self.max_colluders,
        )

    def __post_init__(self) -> None:
        for name in ("num_sites", "rounds", "steps_per_round", "min_sites", "evaluate_every"):
            value = getattr(self, name)
            require(value >= 1, f"federation.{name}", value, "must be at least 1")
        for name in ("wait_seconds", "timeout_seconds"):
            require_positive(f"federation.{name}", getattr(self, name))
        for name in ("retries", "retry_seconds"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"federation.{name}", value, "must be at least 0")
        share = self.min_patient_share
        require(0 <= share <= 1, "federation.min_patient_share", share, "must be from 0 to 1")
        require(
            len(set(self.sites)) == len(self.sites) and all(self.sites),
            "federation.sites",
            self.sites,
            "each name once, and none empty",
        )
        most = len(self.sites) or self.num_sites
        require(
            self.min_sites <= most,
            "federation.min_sites",
            self.min_sites,
            f"at most the {most} approved sites",
        )
        asked = most if self.sites_per_round is None else self.sites_per_round
        require(
            self.min_sites <= asked <= most,
            "federation.sites_per_round",
            asked,
            f"from federation.min_sites={self.min_sites} to the {most} approved sites",
        )
        for name in ("max_dropouts", "max_colluders"):
            value = getattr(self, name)
            require(value >= 0, f"federation.{name}", value, "must be at least 0")
            plain = self.trust is Trust.local and value
            require(not plain, f"federation.{name}", value, "is of trust=secure_aggregation")
        if self.trust is Trust.secure_aggregation:
            require(most >= 2, "federation.num_sites", most, "a secure sum needs 2 or more")
            _ = self.parties  # raises where they cannot be


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
    is than the next. ``seed`` draws who goes where, the run's seed if it is not set.
    """

    kind: PartitionKind = PartitionKind.auto
    by: str | None = None
    alpha: float = 0.5
    ratio: float = 2.0
    seed: int | None = None

    def __post_init__(self) -> None:
        require_positive("partition.alpha", self.alpha)
        sound = self.seed is None or self.seed >= 0
        require(sound, "partition.seed", self.seed, "must be at least 0")
        require(
            math.isfinite(self.ratio) and self.ratio >= 1, "partition.ratio", self.ratio, "from 1"
        )
        if self.kind is PartitionKind.feature_skew and not self.by:
            raise UsageError(
                "partition.by is not set: name a group of the study, such as partition.by=sex"
            )
