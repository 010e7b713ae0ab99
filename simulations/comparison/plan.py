"""From what was asked to the trials: one run each, with its whole configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import configs
from common.config import AugmentMode, Config, Mechanism, StrategyName, StudyKind, Trust, TunedOn
from common.seeds import derive_seed
from simulations.anchor import anchor
from simulations.comparison.fingerprint import fingerprint, start_fingerprint
from simulations.comparison.folder import Folder
from simulations.comparison.request import ArmRequest, Kind, Request, spelled
from simulations.comparison.survey import Survey, survey

# One hospital has nobody to average with: what is done between hospitals is left out. An optimiser
# that the server applies to the mean is kept: it takes the same steps for one hospital.
_OPTIMISERS = {StrategyName.fedavgm, StrategyName.fedadam, StrategyName.fedyogi}
_NO_STRATEGY = ("strategy.name=fedavg", "strategy.server_learning_rate=null")
_ALONE = (
    "federation.min_sites=1",
    "federation.min_patient_share=0",
    "federation.trust=local",
    "federation.sites_per_round=null",
    "strategy.personal=none",
    "strategy.local_steps_after=0",
    "strategy.site_dp.noise_multiplier=null",
)
_OF_KIND = {
    Kind.centralized: (*_ALONE, "federation.num_sites=1", "partition.kind=equal"),
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Settings that a search has found.

    Attributes:
        on: whose patients decided.
        words: settings by arm and epsilon.
    """

    on: TunedOn
    words: Mapping[tuple[str, float], tuple[str, ...]]


def plan(request: Request, folder: Folder, chosen: Chosen | None = None) -> Plan:
    """Compose the configuration of every trial.

    Args:
        request: what was asked for.
        folder: of the comparison.
        chosen: what a search has found; an arm's own settings win over it.

    Raises:
        UsageError: if a setting is wrong, or the study cannot be read or dealt out as asked.
    """
    base = _Base.of(request, folder)
    trials: list[Trial] = []
    for arm in request.arms:
        found = {e: chosen.words[arm.name, e] if chosen else () for e in request.epsilons}
        loaded = {words: base.of_arm(arm, words) for words in dict.fromkeys(found.values())}
        sites: Sequence[str | None] = [None]
        if arm.kind is Kind.local:
            sites = list(survey(loaded[found[request.epsilons[0]]], folder.phantoms).sites)
        cells = itertools.product(request.augments, request.epsilons, request.seeds, sites)
        for augment, epsilon, seed, site in cells:
            cell = Cell(arm=arm.name, augment=augment, epsilon=epsilon)
            config = loaded[found[epsilon]]
            if chosen is not None:
                config = replace(config, privacy=replace(config.privacy, tuned_on=chosen.on))
            trials.append(_trial(config, cell, arm.kind, seed=seed, site=site, folder=folder))
    return Plan(survey=base.survey, config=base.config, trials=tuple(trials))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """What all trials share."""

    words: tuple[str, ...]
    config: Config
    survey: Survey
    here: Path

    def of_arm(self, arm: ArmRequest, found: Sequence[str]) -> Config:
        """What the trials of an arm share, with what a search has found for it."""
        words = [*self.words, *found, *arm.overrides]
        config = configs.load(words)
        if arm.kind is not Kind.federated:
            words += _OF_KIND[arm.kind]
            if config.strategy.name not in _OPTIMISERS:
                words += _NO_STRATEGY
            config = configs.load(words)
        return anchor(config, self.here)

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
        return cls(
            words=(*request.overrides, *words), config=config, survey=found, here=request.here
        )


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
    privacy, federation = config.privacy, config.federation
    if math.isfinite(cell.epsilon):
        privacy = replace(privacy, mechanism=Mechanism.dp_sgd, epsilon=cell.epsilon)
    else:  # without noise there is none to share
        privacy = replace(privacy, mechanism=Mechanism.none)
        federation = replace(federation, trust=Trust.local)
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
    # the same noise in two trials would cancel, and what they cost would not add up
    own.simulation = replace(own.simulation, noise_seed=derive_seed(seed, name))
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
