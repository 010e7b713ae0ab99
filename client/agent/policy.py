"""The hospital's policy: what it allows, whatever a server asks."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import time
from enum import Enum
from importlib import resources
from typing import TypeVar

from client.agent import yaml_file
from client.agent.yaml_file import Fields
from common.config import AccountantName, Unit
from common.errors import UsageError
from common.privacy.budget import Budget

SCHEMA = "fedward.policy/1"

_E = TypeVar("_E", bound=Enum)


class Leave(Enum):
    """How metrics that were computed on patients may leave."""

    off = "off"
    noised = "noised"
    raw = "raw"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """What metrics may leave; ``raw`` only with the reason why the data are public."""

    leave: Leave = Leave.off
    public_reason: str = ""

    def __post_init__(self) -> None:
        if self.leave is Leave.raw and not self.public_reason.strip():
            raise UsageError("metrics.public_reason: missing; metrics.leave=raw needs it")
        if self.leave is not Leave.raw and self.public_reason:
            raise UsageError("metrics.public_reason: is for metrics.leave=raw only")


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
        metrics: what metrics may leave.
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
    metrics: Metrics = Metrics()
    hours: tuple[Window, ...] = ()
    paused: bool = False

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
        metrics=_metrics(given.inside("metrics")) if given.has("metrics") else Metrics(),
        hours=tuple(map(_window, given.texts("hours"))) if given.has("hours") else (),
        paused=given.flag("paused", default=False),
    )


def template() -> str:
    """A policy to start from, with what each setting means."""
    return resources.files("client.agent").joinpath("policy_template.yaml").read_text("utf-8")


def _budget(given: Fields) -> Budget:
    given.only("epsilon", "delta", "unit", "accountant")
    delta = given.number("delta", at_most=0.5)
    unit = _choice(given, "unit", Unit) if given.has("unit") else Unit.patient
    by = _choice(given, "accountant", AccountantName) if given.has("accountant") else None
    return Budget(
        epsilon=given.number("epsilon"),
        delta=delta,
        accountant=(by or AccountantName.pld).value,
        unit=unit,
    )


def _metrics(given: Fields) -> Metrics:
    given.only("leave", "public_reason")
    return Metrics(
        leave=_choice(given, "leave", Leave),
        public_reason=given.text("public_reason") if given.has("public_reason") else "",
    )


def _choice(given: Fields, name: str, kind: type[_E]) -> _E:
    value = given.text(name)
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(one.value for one in kind)
        raise UsageError(f"{given.where}{name}={value}: must be one of {known}") from None


def _window(text: str) -> Window:
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])", text)
    if found is None or text[:5] == text[6:]:
        raise UsageError(f"hours={text!r}: must read HH:MM-HH:MM, with two different times")
    one, two, three, four = map(int, found.groups())
    return Window(start=time(one, two), end=time(three, four))
