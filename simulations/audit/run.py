"""A finished run, opened again for a model audit: its model, its patients, its claims."""

from __future__ import annotations

import itertools
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.numpy import load_file

import configs
from client.audit.shadows import Laboratory, People
from client.audit.site_audit import SiteAudit, SiteClaim, audit_site
from client.audit.strength import LEAST_PATIENTS
from client.data.cohort import Cohort
from client.data.split import Split
from client.data.study import Record, Study
from common.config import Config, Job, Personal, Unit
from common.errors import UsageError
from common.messages import Recipe, Weights
from common.models import weights_sha256
from common.privacy.events import patient_level
from common.seeds import derive_seed
from server.checkpoint import latest_checkpoint
from server.end_state import EndState
from simulations.beginning import as_begun
from simulations.ledgers.reading import Reading, find, read
from simulations.run_dir import RunDir
from simulations.sites import dealt, depth_of, features_cache, load, shared_model

# Takes a stage, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

_MOST_SHADOWS = 16  # more change little
MOST_SECONDS = 300.0  # for references, if nobody says how many: half of a quick audit's ten minutes
_SITE = "site"

Part = tuple[Record, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """What a run left.

    Attributes:
        run_dir: its folder.
        config: its configuration, with what the model began with.
        result: content of its ``result.json``.
        weights: of the released model.
        recipe: of each round.
        rounds: how many were held.
    """

    run_dir: RunDir
    config: Config
    result: Mapping[str, Any] = field(repr=False)
    weights: Weights = field(repr=False)
    recipe: Recipe
    rounds: int

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """The classifier's run in the folder ``path``.

        Raises:
            UsageError: if there is none, or none whose model can be attacked.
        """
        run_dir = RunDir(path=path.absolute())
        if not run_dir.config.is_file():
            raise UsageError(f"{path}: not the folder of a run")
        config = configs.read_yaml(run_dir.config)
        if config.job is not Job.classify:
            raise UsageError(f"{path}: trained a generator; the audit is of classifiers")
        if config.strategy.personal is not Personal.none:
            raise UsageError(
                f"{path}: strategy.personal={config.strategy.personal.value}: hospitals kept "
                "layers to themselves, so no whole model was released"
            )
        result = _result(run_dir.result)
        state = latest_checkpoint(run_dir.checkpoints)
        if state is None or state.recipe is None:
            raise UsageError(f"{path}: no hospital trained in this run")
        return cls(
            run_dir=run_dir,
            config=as_begun(config, run_dir),
            result=result,
            weights=_weights(run_dir.weights, result["final"]["weights_sha256"]),
            recipe=state.recipe,
            rounds=state.round,
        )

    def claim(self, site: str) -> SiteClaim:
        """What the ledger of ``site`` says, in terms of patients.

        Raises:
            UsageError: if it is not there, or not sound.
        """
        folder = self.config.simulation.ledger_dir
        ledgers = {site: self.run_dir.ledger(site)} if folder is None else find(folder / site)
        run_id = self.run_dir.run_id.read_text().strip()
        found = [read(name, path) for name, path in ledgers.items()]
        mine = [one for one in found if folder is None or _holds(one, run_id)]
        return SiteClaim(
            events=tuple(
                patient_level(event, one.cohort.images_per_patient)
                if one.cohort.unit is Unit.image
                else event
                for one in mine[:1]
                for event in one.spent
            ),
            delta=self.recipe.delta,
            accountant=self.recipe.accountant,
        )


def _result(path: Path) -> Mapping[str, Any]:
    try:
        result = json.loads(path.read_text())
        if EndState(result["state"]).has_model and result["final"]["weights_sha256"]:
            return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: no result of a finished run ({error})") from error
    raise UsageError(f"{path}: the run left no final model")


def _weights(path: Path, digest: str) -> Weights:
    try:
        weights = cast("Weights", load_file(path))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not the weights of a run ({error})") from error
    if weights_sha256(weights) != digest:
        raise UsageError(f"{path}: not the weights that result.json names; was it replaced?")
    return weights


def _holds(reading: Reading, run_id: str) -> bool:
    return any(
        request.entry.request_id.startswith(f"{run_id}/") and not request.entry.origin
        for request in reading.requests
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Whose membership is asked at one site.

    Attributes:
        members: records of its training patients.
        others: records of patients that no hospital trained on, in two parts: validation, test.
        own: whether these are of the same hospital, or of the whole study.
    """

    members: Part = field(repr=False)
    others: tuple[Part, ...] = field(repr=False)
    own: bool

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them, members first."""
        return (self.members, *self.others)

    def check(self, name: str) -> None:
        """Refuse the share of the site ``name`` if it is too small.

        Raises:
            UsageError: there are too few members or non-members.
        """
        inside, outside = _num_patients(self.members), sum(map(_num_patients, self.others))
        if min(inside, outside) < LEAST_PATIENTS:
            raise UsageError(
                f"{name}: {inside} members and {outside} non-members; an audit needs "
                f"{LEAST_PATIENTS} patients of each"
            )


def shares_of(
    run: FinishedRun,
) -> tuple[Study, dict[str, Share]]:
    """Read the study again, and deal it out as the run did.

    Non-members of a hospital are its own validation and test patients where the study says which
    hospital they are of (and there are enough), else those of the whole study.

    Raises:
        UsageError: if the data is not there or not what the run had, or there are too few patients.
    """
    config = run.config
    study, split, members = dealt(config, run.run_dir.phantoms, secrets.token_bytes(32))
    spent = run.result["privacy"]["sites"]
    sizes = {name: _num_patients(records) for name, records in members.items()}
    if sizes != {name: spent[name]["num_patients"] for name in spent}:
        raise UsageError(
            f"{run.run_dir.path}: the study {study.name} is not what it was when the run was made"
        )
    approved = config.federation.sites or sorted(members)
    by = config.partition.by or _SITE
    shares = {name: _share(members, name, split, by) for name in approved}
    for name, share in shares.items():
        share.check(name)
    return study, shares


def _share(members: Mapping[str, tuple[Record, ...]], name: str, split: Split, by: str) -> Share:
    mine = {_home(record, by) for record in members[name]}
    elsewhere = {_home(r, by) for other in members if other != name for r in members[other]}
    whole = (split.val, split.test)
    own = tuple(tuple(r for r in part if _home(r, by) in mine) for part in whole)
    if None in mine or mine & elsewhere or len(members) == 1:
        return Share(members=members[name], others=whole, own=len(members) == 1)
    enough = _num_patients([r for part in own for r in part]) >= LEAST_PATIENTS
    parts = tuple(part for part in own if part)
    return Share(members=members[name], others=parts if enough else whole, own=enough)


def _home(record: Record, by: str) -> str | None:
    return record.site if by == _SITE else record.groups.get(by)


def _num_patients(records: Sequence[Record]) -> int:
    return len({record.patient for record in records})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAudit:
    """The model audit of every site of a run.

    Attributes:
        sites: by name.
        claims: by name.
        own_others: whether a site's non-members are its own patients, by name.
        num_shadows: references of each site.
        seconds_each: about how long a reference takes; not measured where their number was given.
        confidence: of all bounds together.
    """

    sites: Mapping[str, SiteAudit]
    claims: Mapping[str, SiteClaim]
    own_others: Mapping[str, bool]
    num_shadows: int
    seconds_each: float | None
    confidence: float

    @property
    def passes_claim(self) -> bool:
        """Whether some site's claim is refuted."""
        return any(audit.proof.passes_claim for audit in self.sites.values())


def audit_run(
    run: FinishedRun,
    *,
    num_shadows: int | None,
    confidence: float,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> RunAudit:
    """Attack the released model at every site, with the site's own patients.

    Args:
        run: what is audited.
        num_shadows: references of each site, an even number; ``None``: at most 16, as many as can
            be trained for all sites in `MOST_SECONDS`.
        confidence: of the lower bounds of all sites together.
        progress: told how far it is.
        clock: seconds that have passed.

    Raises:
        UsageError: if the data is not what the run had, or there are too few patients.
    """
    study, shares = shares_of(run)
    claims = {name: run.claim(name) for name in shares}
    cohorts = _decoded(study, shares, run.config, progress)
    laboratory = _laboratory(run, study, next(iter(cohorts.values())))
    cohorts = _inputs(laboratory, cohorts, run.config, progress)
    people = {
        name: People.joined(*(cohorts[part] for part in share.parts))
        for name, share in shares.items()
    }
    seconds_each = None
    if num_shadows is None:
        largest = max(people.values(), key=lambda one: len(one.cohort.labels))
        seconds_each = laboratory.seconds_each(largest, clock)
        num_shadows = affordable(seconds_each * len(shares))
    total, counter = len(shares) * num_shadows * run.rounds, itertools.count(1)
    found = {
        name: audit_site(
            laboratory,
            people[name],
            claims[name],
            num_pairs=num_shadows // 2,
            confidence=1 - (1 - confidence) / len(shares),
            seed=derive_seed(run.config.seed, "audit", name),
            done=lambda: progress("training references", next(counter), total),
        )
        for name in shares
    }
    return RunAudit(
        sites=found,
        claims=claims,
        own_others={name: share.own for name, share in shares.items()},
        num_shadows=num_shadows,
        seconds_each=seconds_each,
        confidence=confidence,
    )


def affordable(seconds: float) -> int:
    """How many references of each site, an even number, if one of each takes ``seconds``.

    >>> [affordable(seconds) for seconds in (0, 1, 40, 150, 151)]
    [16, 16, 6, 2, 0]
    """
    pairs = MOST_SECONDS / (2 * seconds) if seconds else math.inf
    return 2 * int(min(_MOST_SHADOWS / 2, pairs))


def _decoded(
    study: Study, shares: Mapping[str, Share], config: Config, progress: Progress
) -> dict[Part, Cohort]:
    """Every part of the study that some site needs, once."""
    parts = list(dict.fromkeys(part for share in shares.values() for part in share.parts))
    found: dict[Part, Cohort] = {}
    for number, part in enumerate(parts):
        found[part] = load(study, part, config)
        progress("decoding images", number + 1, len(parts))
    return found


def _laboratory(run: FinishedRun, study: Study, example: Cohort) -> Laboratory:
    config = run.config
    model = shared_model(config, study.task.num_outputs, depth_of(example)).build()
    try:
        return Laboratory(
            model,
            run.weights,
            run.recipe,
            run.rounds,
            image_shape=example.images.shape[1:],
            augmentation=config.training.augmentation,
        )
    except ValueError as error:
        raise UsageError(f"{run.run_dir.weights}: {error}") from error


def _inputs(
    laboratory: Laboratory,
    cohorts: Mapping[Part, Cohort],
    config: Config,
    progress: Progress,
) -> dict[Part, Cohort]:
    found: dict[Part, Cohort] = {}
    for number, (part, cohort) in enumerate(cohorts.items()):
        found[part] = laboratory.inputs(cohort, features_cache(config))
        if laboratory.takes_features:
            progress("asking the frozen layers", number + 1, len(cohorts))
    return found
