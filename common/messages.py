"""What server and sites say to each other.

Every field is marked public (no patient's data had any part in it) or private (computed from
patients; leaves only as the output of a mechanism whose event is in the ledger).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import ClippingKind, EngineName, Personal, Precision
from common.config.privacy import LARGEST_NORM, SMALLEST_NORM
from common.config.training import LARGEST_RATE

Weights = dict[str, NDArray[np.float32]]

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


class Status(StrEnum):
    """How a site answered a training request."""

    trained = "trained"
    refused = "refused"
    failed = "failed"


class Reason(StrEnum):
    """Why a site did not train, or why its reply does not count.

    A fixed list: free text never leaves a site. From ``policy`` to ``another_roster``, a
    hospital's policy speaks (``policy`` itself: for a rule without a code of its own). From
    ``no_reply`` on, the server says so: it got nothing, or what it got was put into quarantine.
    """

    budget_exceeded = "budget_exceeded"
    ledger_unavailable = "ledger_unavailable"
    model_mismatch = "model_mismatch"
    unknown_pool = "unknown_pool"
    bad_request = "bad_request"
    internal_error = "internal_error"
    insecure = "insecure"
    policy = "policy"
    policy_unreadable = "policy_unreadable"
    paused = "paused"
    outside_hours = "outside_hours"
    weak_noise = "weak_noise"
    small_batch = "small_batch"
    high_sampling_rate = "high_sampling_rate"
    too_many_steps = "too_many_steps"
    unapproved_study = "unapproved_study"
    unapproved_model = "unapproved_model"
    unapproved_generator = "unapproved_generator"
    unapproved_code = "unapproved_code"
    unapproved_trust = "unapproved_trust"
    weak_trust = "weak_trust"
    no_roster = "no_roster"
    another_roster = "another_roster"
    no_reply = "no_reply"
    bad_statement = "bad_statement"
    not_connected = "not_connected"
    unreadable = "unreadable"
    another_site = "another_site"
    wrong_shape = "wrong_shape"
    not_finite = "not_finite"
    too_large = "too_large"

    @property
    def for_good(self) -> bool:
        """Whether a site that gave this reason would give it again, and is asked no more."""
        return self in _FOR_GOOD


_FOR_GOOD = {
    Reason.budget_exceeded,
    Reason.model_mismatch,
    Reason.policy,
    Reason.weak_noise,
    Reason.small_batch,
    Reason.high_sampling_rate,
    Reason.too_many_steps,
    Reason.unapproved_study,
    Reason.unapproved_model,
    Reason.unapproved_generator,
    Reason.unapproved_code,
    Reason.unapproved_trust,
    Reason.weak_trust,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train for one round (all public).

    Attributes:
        mechanism: ``"dp_sgd"`` or ``"none"``.
        unit: ``"patient"`` or ``"image"``.
        accountant: name of the accountant of epsilon figures.
        delta: delta of epsilon figures.
        sampling_rate: probability with which each patient enters a step.
        noise_multiplier: noise standard deviation over ``max_grad_norm``; 0 without privacy.
        steps: optimiser steps in this round.
        max_grad_norm: clipping norm of one patient's gradient; not used without privacy.
        images_per_patient: at most so many images of a sampled patient, drawn anew each time.
        optimizer: ``"sgd"`` or ``"adam"``.
        learning_rate: of the local optimiser.
        physical_batch: at most so many images in memory at once (no effect on the result, except
            that random views are drawn batch by batch).
        clipping: kind of clipping, a value of `common.config.ClippingKind`.
        engine: what computes clipped gradients, a value of `common.config.EngineName`.
        precision: of forward and backward passes, a value of `common.config.Precision`.
        augmentation_multiplicity: randomly changed views of each image in a step; the views of
            all images of a patient together make one gradient.
        synthetic_ratio: synthetic images in a step for each expected patient; they are no patients.
        synthetic_as_patients: synthetic images are drawn as patients are instead, with
            ``sampling_rate``.
        momentum: of ``"sgd"``.
        proximal_mu: strength of the pull towards the weights that were sent; it depends on nothing
            but weights and is added to the gradient after the noise.
        controlled: whether the request carries a control variate (SCAFFOLD).
        personal: layers that stay at the site, a value of `common.config.Personal`.
    """

    mechanism: str
    unit: str
    accountant: str
    delta: float
    sampling_rate: float
    noise_multiplier: float
    steps: int
    max_grad_norm: float
    images_per_patient: int
    optimizer: str
    learning_rate: float
    physical_batch: int
    clipping: str = ClippingKind.flat.value
    engine: str = EngineName.bookkeeping.value
    precision: str = Precision.fp32.value
    augmentation_multiplicity: int = 1
    synthetic_ratio: float = 0.0
    synthetic_as_patients: bool = False
    momentum: float = 0.9
    proximal_mu: float = 0.0
    controlled: bool = False
    personal: str = Personal.none.value

    def __post_init__(self) -> None:
        bounds = (
            self.mechanism in {"dp_sgd", "none"},
            self.unit in {"patient", "image"},
            0 < self.delta < 1,
            0 < self.sampling_rate <= 1,
            self.steps >= 1,
            SMALLEST_NORM <= self.max_grad_norm <= LARGEST_NORM,
            0 <= self.noise_multiplier < math.inf,
            self.images_per_patient >= 1,
            self.optimizer in {"sgd", "adam"},
            0 < self.learning_rate <= LARGEST_RATE,
            self.physical_batch >= 1,
            self.clipping in {kind.value for kind in ClippingKind},
            self.engine in {name.value for name in EngineName},
            self.precision in {precision.value for precision in Precision},
            self.augmentation_multiplicity >= 1,
            0 <= self.synthetic_ratio <= 1000,
            0 <= self.momentum < 1,
            0 <= self.proximal_mu < math.inf,
            not self.controlled or (self.optimizer == "sgd" and self.momentum == 0),
            self.personal in {layers.value for layers in Personal},
        )
        if not all(bounds):
            raise ValueError(f"recipe out of bounds: {self}")
        if self.private and self.noise_multiplier == 0:
            raise ValueError("noise_multiplier=0.0: a private recipe needs noise")

    @property
    def mixes(self) -> bool:
        """Whether synthetic images join the patients."""
        return self.synthetic_ratio > 0 or self.synthetic_as_patients

    @property
    def private(self) -> bool:
        """Whether the update of this recipe is differentially private."""
        return self.mechanism == "dp_sgd"

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a field is missing, unknown, of the wrong kind or out of bounds.
        """
        names = {item.name for item in fields(cls)}
        if set(values) != names:
            raise ValueError(f"recipe fields differ: {sorted(names ^ set(values))}")
        wrong = [
            item.name
            for item in fields(cls)
            if isinstance(values[item.name], bool) != (item.type == "bool")
            or not isinstance(values[item.name], _KINDS[str(item.type)])
        ]
        if wrong:
            raise ValueError(f"recipe fields of the wrong kind: {wrong}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteDescription:
    """What a site says of itself when a run begins (public under zero-out adjacency)."""

    site: str
    num_patients: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """The server asks for one round of training (all public).

    ``control`` is SCAFFOLD's server control variate, by the names of ``weights``; empty without.
    """

    run_id: str
    round: int
    recipe: Recipe
    frozen_sha256: str
    weights: Weights = field(repr=False)
    control: Weights = field(default_factory=dict[str, NDArray[np.float32]], repr=False)

    @property
    def request_id(self) -> str:
        """Names the request within a site's ledger: the same for a retry."""
        return f"{self.run_id}/{self.round}/train"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReply:
    """A site's answer.

    ``weights`` are the output of the mechanism that the ledger recorded (private, released);
    everything else is public. ``spend`` is the site's signed spend statement.
    """

    site: str
    status: Status
    num_patients: int
    reason: Reason | None = None
    spend: dict[str, Any] | None = None
    weights: Weights | None = field(default=None, repr=False)
