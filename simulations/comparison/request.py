"""What the command line of ``fedward compare`` asks for."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.config import AugmentMode
from common.errors import UsageError
from simulations.comparison.presets import PRESETS, Size
from simulations.comparison.search import Search, parse_search

_OWN = ("out", "size", "arms", "augments", "epsilons", "seeds", "tune_on")
_INSTEAD = {
    "seed": "seeds=1,2,3",
    "privacy": "epsilons=1,8,inf",
    "privacy.mechanism": "epsilons=1,8,inf",
    "privacy.epsilon": "epsilons=1,8,inf",
    "privacy.noise_multiplier": "epsilons=1,8,inf",
    "augment": "augments=none,mix",
    "augment.mode": "augments=none,mix",
    "run_dir": "out=FOLDER",
    "resume": "the same command again",
    "job": "fedward synthesize for generators",
    "federation.sites": "arms=local",
    "simulation.ray_address": "nothing: its processes are warm and of its own",
    "privacy.site_budgets": "privacy.budget, the same for every hospital",
    "privacy.tuned_on": "tune_on=STUDY",
}


class Kind(StrEnum):
    """Who trains together."""

    centralized = "centralized"
    federated = "federated"
    local = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmRequest:
    """One way of training: who trains together, and what is set for this arm alone."""

    name: str
    kind: Kind
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is to be compared.

    Attributes:
        out: folder of the comparison.
        here: folder that relative paths start from.
        size: of the preset behind what was not set.
        arms: ways of training, the reference arms first.
        augments: uses of synthetic images, values of ``augment.mode``.
        epsilons: targets; infinity is training without privacy.
        seeds: of the runs of each way.
        overrides: settings for all trials, in order.
        search: for settings, before anything is compared; ``None``: none.
    """

    out: Path
    here: Path
    size: Size
    arms: tuple[ArmRequest, ...]
    augments: tuple[str, ...]
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    search: Search | None = None

    def to_json(self) -> str:
        """As a file holds it; infinity is a word, JSON has none for it."""
        return json.dumps(
            {
                "out": str(self.out),
                "here": str(self.here),
                "size": self.size.value,
                "arms": [
                    {"name": arm.name, "kind": arm.kind.value, "overrides": list(arm.overrides)}
                    for arm in self.arms
                ],
                "augments": list(self.augments),
                "epsilons": [repr(epsilon) for epsilon in self.epsilons],
                "seeds": list(self.seeds),
                "overrides": list(self.overrides),
                "search": None if self.search is None else self.search.to_dict(),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = json.loads(text)
        return cls(
            out=Path(fields["out"]),
            here=Path(fields["here"]),
            size=Size(fields["size"]),
            arms=tuple(
                ArmRequest(
                    name=arm["name"], kind=Kind(arm["kind"]), overrides=tuple(arm["overrides"])
                )
                for arm in fields["arms"]
            ),
            augments=tuple(fields["augments"]),
            epsilons=tuple(float(epsilon) for epsilon in fields["epsilons"]),
            seeds=tuple(fields["seeds"]),
            overrides=tuple(fields["overrides"]),
            search=None if fields.get("search") is None else Search.from_dict(fields["search"]),
        )


def spelled(epsilon: float) -> str:
    """As the command line takes it.

    >>> spelled(8.0), spelled(math.inf)
    ('8', 'inf')
    """
    return f"{epsilon:g}"


def parse(words: Iterable[str]) -> Request:
    """Read the words of a command line.

    >>> asked = parse(["out=x", "epsilons=8,inf", "model=vit_tiny", "arm.lora=finetune=lora"])
    >>> [arm.name for arm in asked.arms], asked.epsilons
    (['centralized', 'federated', 'local', 'lora'], (8.0, inf))

    Raises:
        UsageError: for what is no setting, or what the comparison sets itself.
    """
    own: dict[str, str] = {}
    tuned: dict[str, str] = {}
    custom: list[ArmRequest] = []
    overrides: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-") or not equals:
            raise UsageError(f"{word}: no such option; see fedward compare --help")
        if name in _OWN:
            own[name] = value
        elif name.startswith("arm."):
            custom.append(_custom(name.removeprefix("arm."), value))
        elif name.startswith("tune."):
            tuned[_checked(name.removeprefix("tune."))] = value
        else:
            overrides.append(_checked(word))
    if not own.get("out"):
        raise UsageError("out is not set: name the folder of the comparison, out=FOLDER")
    size = _one_of(Size, "size", own.get("size", Size.quick.value))
    preset = PRESETS[size]
    return Request(
        out=Path(own["out"]).absolute(),
        here=Path.cwd(),
        size=size,
        arms=_arms(own, custom),
        augments=_augments(own),
        epsilons=_numbers("epsilons", own, preset.epsilons),
        seeds=tuple(int(seed) for seed in _numbers("seeds", own, preset.seeds)),
        overrides=(*_preset_overrides(size, overrides), *overrides),
        search=parse_search(own.get("tune_on"), tuned),
    )


def _preset_overrides(size: Size, explicit: Sequence[str]) -> tuple[str, ...]:
    """Of the size, but for what the user sets."""
    preset = PRESETS[size]
    names = {word.partition("=")[0] for word in explicit}
    chosen = tuple(word for word in preset.overrides if word.partition("=")[0] not in names)
    own_model = any(name.startswith("model") for name in names) or "data.image_size" in names
    return chosen if own_model else (*chosen, *preset.model)


def _checked(word: str) -> str:
    name = word.partition("=")[0].lstrip("+~")
    if name in _INSTEAD:
        raise UsageError(f"{name}: the comparison sets it itself; use {_INSTEAD[name]}")
    return word


def _custom(name: str, value: str) -> ArmRequest:
    """``arm.NAME="[KIND] SETTING ..."``."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or name in list(Kind):
        raise UsageError(f"arm.{name}: a name of letters, digits, - and _, of no other arm")
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise UsageError(f"arm.{name}={value}: {error}") from None
    kind = Kind.federated
    if words and words[0] in list(Kind):
        kind = Kind(words.pop(0))
    if not words or any("=" not in word for word in words):
        raise UsageError(
            f'arm.{name}="{value}": must read [{"|".join(Kind)}] SETTING=VALUE ..., such as '
            f'arm.{name}="finetune=lora"'
        )
    return ArmRequest(name=name, kind=kind, overrides=tuple(map(_checked, words)))


def _arms(own: dict[str, str], custom: Sequence[ArmRequest]) -> tuple[ArmRequest, ...]:
    by_name = {arm.name: arm for arm in custom}
    if len(by_name) < len(custom):
        raise UsageError("arm.NAME: each name once")
    asked = _listed("arms", own["arms"]) if "arms" in own else list(Kind)
    found: dict[str, ArmRequest] = {}
    for name in asked:
        if name not in by_name:
            kind = _one_of(Kind, "arms", name)
            found[name] = ArmRequest(name=kind.value, kind=kind)
    return tuple((found | by_name).values())


def _augments(own: dict[str, str]) -> tuple[str, ...]:
    asked = _listed("augments", own["augments"]) if "augments" in own else ["none"]
    return tuple(_one_of(AugmentMode, "augments", name).value for name in asked)


def _numbers(name: str, own: dict[str, str], default: Sequence[float]) -> tuple[float, ...]:
    """Each once, in ascending order."""
    if name not in own:
        return tuple(sorted(default))
    found: set[float] = set()
    for word in _listed(name, own[name]):
        try:
            value = float(word) if name == "epsilons" else float(int(word))
        except ValueError:
            value = math.nan
        if not (value > 0 if name == "epsilons" else value >= 0):
            what = "numbers above 0, or inf" if name == "epsilons" else "whole numbers from 0"
            raise UsageError(f"{name}={own[name]}: must be {what}, with commas between them")
        found.add(value)
    return tuple(sorted(found))


def _listed(name: str, value: str) -> list[str]:
    words = [word.strip() for word in value.strip("[]").split(",")]
    if not all(words):
        raise UsageError(f"{name}={value}: must be a list with commas, without empty places")
    return list(dict.fromkeys(words))


def _one_of(choices: Any, name: str, value: str) -> Any:
    try:
        return choices(value)
    except ValueError:
        options = ", ".join(choice.value for choice in choices)
        raise UsageError(f"{name}={value}: no such choice; there are {options}") from None
