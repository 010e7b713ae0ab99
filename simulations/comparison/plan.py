"""From what was asked to the trials: one run each, with its whole configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import configs
from common.config import AugmentMode, Config, Mechanism, StudyKind
from simulations.anchor import anchor
from simulations.comparison.fingerprint import fingerprint, start_fingerprint
from simulations.comparison.folder import Folder
from simulations.comparison.request import Kind, Request, spelled
from simulations.comparison.survey import Survey, survey

# One hospital has nobody to average with: what is done between hospitals is left out.
_ALONE = (
    "federation.min_sites=1",
    "federation.min_patient_share=0",
    "strategy.name=fedavg",
    "strategy.server_learning_rate=null",
    "strategy.personal=none",
    "strategy.local_steps_after=0",
    "strategy.site_dp.noise_multiplier=null",
)
_OF_KIND = {
    Kind.centralized: (*_ALONE, "federation.num_sites=1", "partition.kind=equal"),
    Kind.federated: (),
    Kind.local: _ALONE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One way of training at one epsilon: what the runs of several seeds speak for.

    Attributes:
        arm: name.
        augment: use of synthetic images.
        epsilon: target; infinity is training without privacy.
    """

    arm: str
    augment: str
    epsilon: float

    def __str__(self) -> str:
        parts = [self.arm, *([] if self.augment == "none" else [self.augment])]
        return " ".join([*parts, f"epsilon {spelled(self.epsilon)}"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run.

    Attributes:
        cell: what it speaks for.
        kind: who trains together.
        seed: of the run.
        site: which hospital, where each trains alone.
        config: the whole configuration.
        name: configuration hash.
        start: names what the model begins with, if that is trained on synthetic images.
    """

    cell: Cell
    kind: Kind
    seed: int
    site: str | None
    config: Config = field(repr=False)
    name: str
    start: str | None

    @property
    def title(self) -> str:
        """In words."""
        at = "" if self.site is None else f" {self.site}"
        return f"{self.cell}{at} seed {self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All trials of a comparison, and the study they are of."""

    survey: Survey
    config: Config = field(repr=False)
    trials: tuple[Trial, ...] = field(repr=False)


def plan(request: Request, folder: Folder) -> Plan:
    """Compose the configuration of every trial.

    Raises:
        UsageError: if a setting is wrong, or the study cannot be read or dealt out as asked.
    """
    base = _Base.of(request, folder)
    trials: list[Trial] = []
    for arm in request.arms:
        words = [*base.words, *arm.overrides, *_OF_KIND[arm.kind]]
        config = anchor(configs.load(words), request.here)
        sites: Sequence[str | None] = [None]
        if arm.kind is Kind.local:
            sites = list(survey(config, folder.phantoms).sites)
        cells = itertools.product(request.augments, request.epsilons, request.seeds, sites)
        for augment, epsilon, seed, site in cells:
            cell = Cell(arm=arm.name, augment=augment, epsilon=epsilon)
            trials.append(_trial(config, cell, arm.kind, seed=seed, site=site, folder=folder))
    return Plan(survey=base.survey, config=base.config, trials=tuple(trials))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """What all trials share."""

    words: tuple[str, ...]
    config: Config
    survey: Survey

    @classmethod
    def of(cls, request: Request, folder: Folder) -> _Base:
        """Fix what would else follow the seed of a run or the number of its hospitals."""
        asked = anchor(configs.load(request.overrides), request.here)
        data, seed = asked.data, asked.seed
        phantom = data.kind is StudyKind.phantom
        fixed: dict[str, object] = {
            "data.split_seed": seed if data.split_seed is None else data.split_seed,
            "partition.seed": seed if asked.partition.seed is None else asked.partition.seed,
            "data.cache_dir": _path(data.cache_dir or folder.cache),
            "data.root": _path(folder.phantoms if phantom and data.root is None else data.root),
            "model.weights": _path(asked.model.weights),
            "model.start": _path(asked.model.start),
            "augment.pool": _path(asked.augment.pool),
            "augment.provenance": _path(asked.augment.provenance),
            "simulation.ledger_dir": _path(asked.simulation.ledger_dir),
        }
        if phantom:
            hospitals = data.phantom.num_hospitals or asked.federation.num_sites
            fixed["data.phantom.num_hospitals"] = hospitals
        words = [f"{name}={value}" for name, value in fixed.items() if value is not None]
        config = configs.load([*request.overrides, *words])
        found = survey(config, folder.phantoms)
        words.append(f"privacy.delta={found.delta!r}")
        return cls(words=(*request.overrides, *words), config=config, survey=found)


def _path(path: Path | None) -> str | None:
    """Quoted for Hydra."""
    if path is None:
        return None
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _trial(
    config: Config, cell: Cell, kind: Kind, *, seed: int, site: str | None, folder: Folder
) -> Trial:
    """The arm's configuration at the cell's epsilon."""
    privacy = replace(config.privacy, mechanism=Mechanism.none)
    if math.isfinite(cell.epsilon):
        privacy = replace(config.privacy, mechanism=Mechanism.dp_sgd, epsilon=cell.epsilon)
    federation = config.federation
    if site is not None:
        federation = replace(federation, sites=[site])
    own = replace(
        config,
        title=str(cell),
        seed=seed,
        privacy=privacy,
        federation=federation,
        augment=replace(config.augment, mode=AugmentMode(cell.augment)),
    )
    name = fingerprint(own)
    own.run_dir = folder.finished(name).path
    return Trial(
        cell=cell,
        kind=kind,
        seed=seed,
        site=site,
        config=own,
        name=name,
        start=start_fingerprint(own),
    )
