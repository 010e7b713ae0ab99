"""The hospital's policy: what it allows, whatever a server asks."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from datetime import time
from enum import Enum
from importlib import resources
from typing import TypeVar

from client.agent import yaml_file
from client.agent.yaml_file import Fields
from common.config import AccountantName, Trust, Unit
from common.errors import UsageError
from common.privacy.budget import Budget

SCHEMA = "fedward.policy/1"

_E = TypeVar("_E", bound=Enum)
_TRUST_WORDS = {
    Trust.local: "this hospital's own, the whole of it",
    Trust.secure_aggregation: "shared among hospitals, under secure aggregation",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A part of the day, over midnight where it ends before it begins."""

    start: time
    end: time

    def holds(self, moment: time) -> bool:
        """Whether ``moment`` lies within; the end does not.

        >>> Window(start=time(20), end=time(6)).holds(time(5, 59))
        True
        """
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustRules:
    """Whose noise may protect the patients.

    Where noise may be shared, the hospital says how many it shares with: no server can choose a
    roster of few, or count on all of them to keep their noise to themselves.

    Attributes:
        accepted: kinds of trust.
        least_sites: hospitals of a roster, this one included.
        least_colluders: rounds must bear at least so many hospitals that tell the server all.
    """

    accepted: tuple[Trust, ...] = (Trust.local,)
    least_sites: int = 0
    least_colluders: int = 0

    def __post_init__(self) -> None:
        if not self.accepted or len(set(self.accepted)) != len(self.accepted):
            raise UsageError("trust.accepted: must name local, secure_aggregation, or both")
        if self.shares_noise and self.least_sites < self.least_colluders + 2:
            raise UsageError(
                f"trust.least_sites={self.least_sites}: must be at least trust.least_colluders + 2"
                f" ({self.least_colluders + 2}): this hospital, and one that does not collude"
            )

    @property
    def shares_noise(self) -> bool:
        """Whether the hospital takes part in secure sums."""
        return Trust.secure_aggregation in self.accepted


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What a hospital allows; every field is public.

    Attributes:
        studies: the cap of each approved study's cohort, by the study's name.
        smallest_noise_multiplier: of a recipe.
        smallest_expected_batch: sampling rate times number of privacy units.
        largest_sampling_rate: of a recipe.
        largest_steps: of one round.
        models: architectures that may be trained, as shell patterns.
        generators: whether a generator of synthetic images may be trained.
        trust: whose noise may protect the patients.
        hours: when rounds may begin; at any time if empty.
        paused: whether nothing at all may begin.
    """

    studies: dict[str, Budget]
    smallest_noise_multiplier: float
    smallest_expected_batch: float
    largest_sampling_rate: float
    largest_steps: int
    models: tuple[str, ...]
    generators: bool = False
    trust: TrustRules = TrustRules()
    hours: tuple[Window, ...] = ()
    paused: bool = False

    def __post_init__(self) -> None:
        for name, budget in self.studies.items():
            if self.trust.shares_noise and math.isinf(budget.epsilon_alone):
                raise UsageError(
                    f"studies.{name}.epsilon_alone: missing; trust.accepted names "
                    "secure_aggregation, so both epsilons have a cap"
                )

    def changed_from(self, other: Policy | None) -> tuple[str, ...]:
        """Names of the settings that differ; all of them if there was no policy before."""
        return tuple(
            item.name
            for item in fields(self)
            if other is None or getattr(self, item.name) != getattr(other, item.name)
        )


def parse(text: str) -> Policy:
    """The policy that a file's ``text`` holds.

    Raises:
        UsageError: A setting is missing, unknown or out of bounds.
    """
    given = yaml_file.parse(text)
    given.only("schema", *(item.name for item in fields(Policy)))
    if given.text("schema") != SCHEMA:
        raise UsageError(f"schema={given.text('schema')}: must be {SCHEMA}")
    studies = given.inside("studies")
    return Policy(
        studies={name: _budget(studies.inside(name)) for name in studies.values},
        smallest_noise_multiplier=given.number("smallest_noise_multiplier"),
        smallest_expected_batch=given.number("smallest_expected_batch"),
        largest_sampling_rate=given.number("largest_sampling_rate", at_most=1.0),
        largest_steps=given.whole("largest_steps", least=1),
        models=given.texts("models"),
        generators=given.flag("generators", default=False),
        trust=_trust(given.inside("trust")) if given.has("trust") else TrustRules(),
        hours=tuple(map(_window, given.texts("hours"))) if given.has("hours") else (),
        paused=given.flag("paused", default=False),
    )


def lines(policy: Policy) -> list[str]:
    """The policy in words, for whoever answers for it."""
    trust = policy.trust
    found = ["paused: nothing new begins"] if policy.paused else []
    for name, cap in policy.studies.items():
        alone = ""
        if math.isfinite(cap.epsilon_alone):
            alone = f", {cap.epsilon_alone:g} if no other hospital can be trusted"
        found.append(
            f"study {name}: epsilon at most {cap.epsilon:g}{alone} (delta {cap.delta:g}, unit "
            f"{cap.unit.value}, accountant {cap.accountant})"
        )
    found.append("noise: " + " or ".join(_TRUST_WORDS[one] for one in trust.accepted))
    if trust.shares_noise:
        found.append(
            f"shared noise: a roster of at least {trust.least_sites} hospitals, of which at least "
            f"{trust.least_colluders} may collude with the server"
        )
    found.append(
        f"a round: noise multiplier at least {policy.smallest_noise_multiplier:g}, at least "
        f"{policy.smallest_expected_batch:g} in a step, sampling rate at most "
        f"{policy.largest_sampling_rate:g}, at most {policy.largest_steps} steps"
    )
    found.append(f"models: {', '.join(policy.models) or 'none'}")
    found.append(f"generators: {'yes' if policy.generators else 'no'}")
    hours = (f"{one.start:%H:%M}-{one.end:%H:%M}" for one in policy.hours)
    found.append(f"hours: {', '.join(hours) or 'always'}")
    return found


def template() -> str:
    """A policy to start from, with what each setting means."""
    return resources.files("client.agent").joinpath("policy_template.yaml").read_text("utf-8")


def _budget(given: Fields) -> Budget:
    given.only("epsilon", "epsilon_alone", "delta", "unit", "accountant")
    delta = given.number("delta", at_most=0.5)
    unit = _choice(given, "unit", Unit) if given.has("unit") else Unit.patient
    by = _choice(given, "accountant", AccountantName) if given.has("accountant") else None
    return Budget(
        epsilon=given.number("epsilon"),
        delta=delta,
        accountant=(by or AccountantName.pld).value,
        unit=unit,
        epsilon_alone=given.number("epsilon_alone") if given.has("epsilon_alone") else math.inf,
        adaptive=True,
    )


def _trust(given: Fields) -> TrustRules:
    given.only("accepted", "least_sites", "least_colluders")
    accepted = tuple(_chosen(given.where + "accepted", n, Trust) for n in given.texts("accepted"))
    if accepted and Trust.secure_aggregation not in accepted:
        for name in ("least_sites", "least_colluders"):
            if given.has(name):
                raise UsageError(f"{given.where}{name}: is for secure_aggregation only")
    if Trust.secure_aggregation not in accepted:
        return TrustRules(accepted=accepted)
    return TrustRules(
        accepted=accepted,
        least_sites=given.whole("least_sites", least=2),
        least_colluders=given.whole("least_colluders", least=0),
    )


def _choice(given: Fields, name: str, kind: type[_E]) -> _E:
    return _chosen(f"{given.where}{name}", given.text(name), kind)


def _chosen(name: str, value: str, kind: type[_E]) -> _E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(one.value for one in kind)
        raise UsageError(f"{name}={value}: must be one of {known}") from None


def _window(text: str) -> Window:
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])", text)
    if found is None or text[:5] == text[6:]:
        raise UsageError(f"hours={text!r}: must read HH:MM-HH:MM, with two different times")
    one, two, three, four = map(int, found.groups())
    return Window(start=time(one, two), end=time(three, four))
