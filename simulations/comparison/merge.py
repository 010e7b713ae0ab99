"""Finished runs, started by anyone at any time, held against each other like one comparison."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import configs
from common.config import Config
from common.errors import UsageError
from simulations.comparison.curves import unbounded
from simulations.comparison.measured import Measured, read_result
from simulations.comparison.plan import Cell, Plan, Trial
from simulations.comparison.request import Kind
from simulations.comparison.summary import compared, trial_facts
from simulations.comparison.survey import Survey
from simulations.report.page import flattened
from simulations.report.wording import plain
from simulations.run_dir import RunDir

_BESIDE = ("seed", "title", "run_dir", "resume", "job", "data.cache_dir", "data.label_rules")
_BESIDE_GROUPS = ("simulation.", "tracking.", "gan.")
_OF_CELL = (
    "augment.mode",
    "data.split_seed",
    "federation.sites",
    "partition.seed",
    "privacy.budget",
    "privacy.delta",
    "privacy.epsilon",
    "privacy.mechanism",
    "privacy.noise_multiplier",
)
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """A finished run, and what it is an example of."""

    run_dir: RunDir
    config: Config = field(repr=False)
    result: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> _Run:
        run_dir = RunDir(path=path)
        result = read_result(run_dir)
        if not (result.get("final") or {}).get("test"):
            raise UsageError(
                f"{path}: this run left no tested model, so there is nothing to compare"
            )
        return cls(run_dir=run_dir, config=configs.read_yaml(run_dir.config), result=result)

    @property
    def site(self) -> str | None:
        """The hospital that trained alone, where others have patients too."""
        alone = self.config.federation.sites
        several = len(self.result["privacy"]["sites"]) > 1
        return alone[0] if len(alone) == 1 and several else None

    @property
    def kind(self) -> Kind:
        """Who trained together."""
        if self.site is not None:
            return Kind.local
        several = len(self.result["privacy"]["sites"]) > 1
        return Kind.federated if several else Kind.centralized

    @property
    def epsilon(self) -> float:
        """The target; of noise that was given, what training alone spent."""
        privacy = self.result["privacy"]
        if privacy["mechanism"] == "none":
            return math.inf
        if privacy["epsilon_target"] is not None:
            return privacy["epsilon_target"]
        spent = [unbounded(site["epsilon_this_run"]) for site in privacy["sites"].values()]
        return float(f"{max(spent):.3g}")

    @property
    def settings(self) -> dict[str, str]:
        """What makes an arm: settings that are neither of the cell nor beside the result."""
        return {
            name: plain(value)
            for name, value in flattened(configs.to_dict(self.config))
            if name not in (*_BESIDE, *_OF_CELL) and not name.startswith(_BESIDE_GROUPS)
        }


def merge(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Compare finished runs; returns the content of ``comparison.json``.

    The first run of a kind (federated, centralized, a hospital alone) names its arm; runs of this
    kind with other settings are arms of their own, named by what differs.

    Args:
        paths: folders of runs, or of comparisons, whose trials are then taken.
        out: where the comparison will lie.

    Raises:
        UsageError: no finished classification run in one of them, two runs of the same arm,
            epsilon, seed and hospital, or runs that differ in what must be equal.
    """
    given = [_Run.read(path) for path in _spread(paths)]
    named = zip(given, map(_trial, given, _arms(given)), strict=True)
    pairs = sorted(named, key=lambda pair: _place(pair[1]))
    runs, trials = [run for run, _ in pairs], [trial for _, trial in pairs]
    _refuse_twins(runs, trials)
    found = [
        Measured.read(trial, run.run_dir, called=str(run.run_dir.path))
        for trial, run in zip(trials, runs, strict=True)
    ]
    survey = _survey(runs)
    told = compared(
        found,
        Plan(survey=survey, config=given[0].config, trials=tuple(trials)),
        _shared([configs.to_dict(run.config) for run in runs]),
    )
    told["title"] = f"{len(runs)} runs on {runs[0].config.data.name}"
    told["equal"]["remarks"] += _about_hospitals(trials, survey)
    return {
        **told,
        "request": _request(runs, trials),
        "trials": [
            trial_facts(trial, folder=Path(os.path.relpath(run.run_dir.path, out)))
            for trial, run in zip(trials, runs, strict=True)
        ],
        "missing": [],
    }


def _spread(paths: Sequence[Path]) -> list[Path]:
    """Each run once; of a comparison its finished trials."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path}: no such folder")
        trials = sorted((path / "trials").glob("*/result.json"))
        found += [trial.parent for trial in trials] or [path]
    return list(dict.fromkeys(path.resolve() for path in found))


def _arms(runs: Sequence[_Run]) -> list[str]:
    """A name for each run's arm: its kind, and what differs from the first of that kind."""
    first: dict[Kind, dict[str, str]] = {}
    names: dict[tuple[Kind, tuple[tuple[str, str], ...]], str] = {}
    arms: list[str] = []
    for run in runs:
        settings = run.settings
        base = first.setdefault(run.kind, settings)
        key = (run.kind, tuple(sorted(settings.items())))
        if key not in names:
            names[key] = _named(run.kind, base, settings, taken=set(names.values()))
        arms.append(names[key])
    return arms


def _named(
    kind: Kind, base: Mapping[str, str], settings: Mapping[str, str], *, taken: set[str]
) -> str:
    differing = [name for name in settings if settings[name] != base.get(name)]
    words = [f"{name}={settings[name]}" for name in differing[:_MOST_NAMED]]
    if len(differing) > _MOST_NAMED:
        words.append(f"and {len(differing) - _MOST_NAMED} more")
    name = " ".join([kind.value, *words])
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique


def _trial(run: _Run, arm: str) -> Trial:
    return Trial(
        cell=Cell(arm=arm, augment=run.config.augment.mode.value, epsilon=run.epsilon),
        kind=run.kind,
        seed=run.config.seed,
        site=run.site,
        config=run.config,
        name=run.result["final"]["weights_sha256"][:20],
        start=None,
    )


def _place(trial: Trial) -> tuple[Any, ...]:
    """Arms as in a comparison: by who trained together, then by use of synthetic images."""
    cell = trial.cell
    kind = list(Kind).index(trial.kind)
    use = (cell.augment != "none", cell.augment)
    return (kind, cell.arm, use, cell.epsilon, trial.seed, trial.site or "")


def _refuse_twins(runs: Sequence[_Run], trials: Sequence[Trial]) -> None:
    seen: dict[tuple[Cell, int, str | None], Path] = {}
    for run, trial in zip(runs, trials, strict=True):
        path = run.run_dir.path
        other = seen.setdefault((trial.cell, trial.seed, trial.site), path)
        if other != path:
            raise UsageError(
                f"{other} and {path}: both are {trial.title!r} with the same settings; "
                "leave one out"
            )


def _survey(runs: Sequence[_Run]) -> Survey:
    """Of the run with most hospitals."""
    widest = max(runs, key=lambda run: len(run.result["privacy"]["sites"]))
    return Survey(
        sites={
            name: spend["num_patients"]
            for name, spend in sorted(widest.result["privacy"]["sites"].items())
        },
        num_images=widest.result["study"]["num_train_images"],
        delta=widest.result["privacy"]["delta"],
    )


def _about_hospitals(trials: Sequence[Trial], survey: Survey) -> list[str]:
    """Where the mean over hospitals leaves some out."""
    alone: dict[Cell, set[str]] = {}
    for trial in trials:
        if trial.site is not None:
            alone.setdefault(trial.cell, set()).add(trial.site)
    return [
        f"{cell}: the mean is over {len(sites)} of {len(survey.sites)} hospitals."
        for cell, sites in alone.items()
        if len(sites) < len(survey.sites)
    ]


def _shared(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all configurations have in common."""
    shared: dict[str, Any] = {}
    for name, value in trees[0].items():
        others = [tree.get(name) for tree in trees[1:]]
        if isinstance(value, Mapping) and all(isinstance(one, Mapping) for one in others):
            shared[name] = _shared([value, *(one for one in others if one is not None)])
        elif all(one == value for one in others):
            shared[name] = value
    return shared


def _request(runs: Sequence[_Run], trials: Sequence[Trial]) -> dict[str, Any]:
    """In the words of a comparison that was asked for."""
    epsilons = sorted({trial.cell.epsilon for trial in trials})
    kinds = {trial.cell.arm: trial.kind.value for trial in trials}
    return {
        "size": None,
        "arms": [
            {"name": arm, "kind": kind, "overrides": arm.split(" ")[1:]}
            for arm, kind in kinds.items()
        ],
        "augments": list(dict.fromkeys(run.config.augment.mode.value for run in runs)),
        "epsilons": [epsilon if math.isfinite(epsilon) else None for epsilon in epsilons],
        "seeds": sorted({trial.seed for trial in trials}),
        "overrides": [],
    }
