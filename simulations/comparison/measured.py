"""Finished trials read back, and what must be equal before any two of them are compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import UsageError
from simulations.comparison.plan import Trial
from simulations.predictions import Predictions
from simulations.run_dir import RunDir

_PRIVACY = ("unit", "delta", "accountant", "adjacency")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A finished trial; derived from test patients.

    Attributes:
        trial: what was run.
        called: what a message names it; the trial's title if empty.
        result: content of its ``result.json``.
        predictions: what its model said of each test image.
    """

    trial: Trial
    result: dict[str, Any] = field(repr=False)
    predictions: Predictions = field(repr=False)
    called: str = ""

    @classmethod
    def read(cls, trial: Trial, run_dir: RunDir, *, called: str = "") -> Measured:
        """From its folder.

        Raises:
            UsageError: if the files there are not those of a finished run.
        """
        return cls(
            trial=trial,
            result=read_result(run_dir),
            predictions=Predictions.read(run_dir.predictions),
            called=called,
        )

    @property
    def title(self) -> str:
        """In words."""
        return self.called or self.trial.title

    @property
    def steps(self) -> int:
        """That the hospitals took together in rounds that counted."""
        rounds = sum(record["aggregated"] for record in self.result["rounds"])
        return rounds * self.result["privacy"]["steps_per_round"]

    @property
    def num_patients(self) -> int:
        """Patients of the hospitals that took part."""
        sites = self.result["privacy"]["sites"]
        site = self.trial.site
        return sum(
            spend["num_patients"] for name, spend in sites.items() if site is None or name == site
        )


def read_result(run_dir: RunDir) -> dict[str, Any]:
    """The content of ``result.json``.

    Raises:
        UsageError: if there is none.
    """
    try:
        result: object = json.loads(run_dir.result.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{run_dir.result}: no result of a run ({error})") from error
    if not isinstance(result, dict):
        raise UsageError(f"{run_dir.result}: no result of a run")
    return result


def check_comparable(found: Sequence[Measured]) -> None:
    """Refuse runs that were not tested on the same images, or mean another thing by epsilon.

    Raises:
        UsageError: two trials differ in test set, task, unit, delta, accountant or adjacency.
    """
    if not found:
        return
    first = found[0]
    for one in found[1:]:
        why = first.predictions.test_set.differs_from(one.predictions.test_set)
        if why is None and one.predictions.scored.task != first.predictions.scored.task:
            why = "another task"
        if why is not None:
            raise UsageError(
                f"{first.title!r} and {one.title!r} were tested on different test sets "
                f"({why}); runs can be compared on the same test images only"
            )
        for name in _PRIVACY:
            a, b = first.result["privacy"][name], one.result["privacy"][name]
            if a != b:
                raise UsageError(
                    f"{first.title!r} has {name} {a} and {one.title!r} has {name} {b}; "
                    "their epsilons mean different things and are not compared"
                )
