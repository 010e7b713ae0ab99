"""One trial: a whole federation in this process, from its configuration to its finished folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import configs
from common.config import Config
from common.files import write_atomically
from simulations.comparison.folder import Folder
from simulations.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker needs of a trial."""

    name: str
    start: str | None
    folder: Folder
    config: Config = field(repr=False)


def run_trial(job: Job) -> None:
    """Train, test, keep what others read; the folder appears in its place whole or not at all.

    Raises:
        UsageError: if something of the configuration cannot be done.
        RunFailed: if the federation could not finish.
    """
    from simulations.classification import classify
    from simulations.hosting.in_process import federate
    from simulations.scene import Scene
    from simulations.sites import close_sites, prepare

    run_dir = job.folder.unfinished(job.name)
    shutil.rmtree(run_dir.path, ignore_errors=True)
    run_dir.work.mkdir(parents=True)
    write_atomically(run_dir.config, configs.dump_yaml(job.config))
    write_atomically(run_dir.run_id, job.name)
    try:
        config = _with_own_ledgers(job.config, run_dir)
        _take_start(job, run_dir)
        classify(
            Scene(
                config=config,
                run_dir=run_dir,
                hospitals=prepare(config, run_dir),
                observe=_nobody,
                federate=federate,
            )
        )
        _share_start(job, run_dir)
        _settle(run_dir, job.folder.finished(job.name))
    finally:
        close_sites(run_dir)
        shutil.rmtree(run_dir.path, ignore_errors=True)


def _nobody(event: dict[str, Any]) -> None:
    del event


def _with_own_ledgers(config: Config, run_dir: RunDir) -> Config:
    """Each trial starts from the hospitals' ledgers as they are, as if it were the only one.

    So a trial finds what was paid for synthetic images, and not what other trials spent.
    """
    ledgers = config.simulation.ledger_dir
    if ledgers is None:
        return config
    own = run_dir.path / "ledgers"
    if ledgers.is_dir():
        shutil.copytree(ledgers, own)
    return replace(config, simulation=replace(config.simulation, ledger_dir=own))


def _take_start(job: Job, run_dir: RunDir) -> None:
    if job.start is not None and job.folder.start(job.start).is_file():
        shutil.copyfile(job.folder.start(job.start), run_dir.start)


def _share_start(job: Job, run_dir: RunDir) -> None:
    if job.start is None or job.folder.start(job.start).is_file():
        return
    place = job.folder.start(job.start)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, run_dir.start.read_bytes())


def _settle(run_dir: RunDir, place: RunDir) -> None:
    """Move what is read later to its place; images, models and ledgers of the trial are dropped.

    What was spent stands in ``result.json``.
    """
    kept = {run_dir.config, run_dir.result, run_dir.predictions, run_dir.report}
    for path in run_dir.path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in kept:
            path.unlink()
    place.path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place.path, ignore_errors=True)  # what somebody left without a result
    _sync(run_dir.path)
    run_dir.path.rename(place.path)
    _sync(place.path.parent)


def _sync(folder: Path) -> None:
    """Names in a folder are on disk before what follows."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
