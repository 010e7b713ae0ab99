"""Settings to choose from before anything is compared, and whose patients decide."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import UsageError

PRIVATE = "private"
_MOST = 64
# What decides who the patients are, or what is compared, is the same for every candidate.
_FIXED = ("data", "partition", "experiment", "augment", "simulation", "tracking")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What every arm is offered before the comparison, at every epsilon alike.

    Attributes:
        on: settings that make the study whose patients decide; ``None``: the patients that are
            compared on, whose privacy the search then costs.
        values: by setting, what to choose from, as Hydra takes it.
    """

    on: tuple[str, ...] | None
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def private(self) -> bool:
        """Whether the compared patients decide."""
        return self.on is None

    def candidates(self) -> list[tuple[str, ...]]:
        """Every combination of values, as settings.

        >>> Search(on=None, values={"a": ("1", "2"), "b": ("3",)}).candidates()
        [('a=1', 'b=3'), ('a=2', 'b=3')]
        """
        names = list(self.values)
        return [
            tuple(f"{name}={value}" for name, value in zip(names, chosen, strict=True))
            for chosen in itertools.product(*self.values.values())
        ]

    def to_dict(self) -> dict[str, Any]:
        """As a file holds it."""
        on = None if self.on is None else list(self.on)
        return {"on": on, "values": {name: list(some) for name, some in self.values.items()}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Search:
        """The inverse of `to_dict`."""
        on = fields["on"]
        return cls(
            on=None if on is None else tuple(on),
            values={name: tuple(some) for name, some in fields["values"].items()},
        )


def parse_search(on: str | None, values: Mapping[str, str]) -> Search | None:
    """Read ``tune_on=STUDY`` and ``tune.SETTING=V1,V2,...``; ``None`` without either.

    >>> parse_search("private", {"training.learning_rate": "0.5,2"}).candidates()
    [('training.learning_rate=0.5',), ('training.learning_rate=2',)]

    Raises:
        UsageError: one of the two alone, a setting that decides who the patients are, a value
            missing, or more than 64 candidates.
    """
    if on is None and not values:
        return None
    if on is None:
        raise UsageError(
            "tune_on is not set: name a public study, such as "
            'tune_on="data=cbis_synthetic data.root=FOLDER", or tune_on=private, which costs'
        )
    if not values:
        raise UsageError("tune_on: nothing to choose from; add tune.SETTING=VALUE,VALUE")
    search = Search(
        on=_study(on), values={name: _values(name, text) for name, text in values.items()}
    )
    number = len(search.candidates())
    if not 2 <= number <= _MOST:
        raise UsageError(f"tune.SETTING: {number} candidates; there must be 2 to {_MOST}")
    return search


def _study(on: str) -> tuple[str, ...] | None:
    if on == PRIVATE:
        return None
    try:
        words = shlex.split(on)
    except ValueError as error:
        raise UsageError(f"tune_on={on}: {error}") from None
    if not words or any("=" not in word for word in words):
        raise UsageError(
            f"tune_on={on}: must be {PRIVATE}, or settings that make a study, such as "
            'tune_on="data=cbis_synthetic data.root=FOLDER"'
        )
    return tuple(words)


def _values(name: str, text: str) -> tuple[str, ...]:
    if name.partition(".")[0] in _FIXED:
        raise UsageError(f"tune.{name}: the same for all candidates; it is not tuned")
    values: Sequence[str] = [value.strip() for value in text.split(",")]
    if not all(values):
        raise UsageError(f"tune.{name}={text}: must be a list with commas, without empty places")
    return tuple(dict.fromkeys(values))
