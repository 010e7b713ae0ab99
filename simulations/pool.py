"""The synthetic images of a run: read once, kept where every simulated hospital can map them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.data.cohort import Cohort
from client.synthesis.charging import charge
from client.synthesis.image_set import ImageSet, read_image_set
from client.synthesis.source import Source
from common import provenance
from common.config import AugmentMode, Config
from common.errors import BudgetExceeded, LedgerError, Refusal, UsageError
from common.files import write_atomically
from common.provenance import Kind
from common.task import Task
from server.recipe import Synthetic
from simulations.run_dir import RunDir

if TYPE_CHECKING:
    from simulations.sites import SimulatedSites

_DIGEST = "digest"


def prepare_pool(config: Config, task: Task, depth: int | None, run_dir: RunDir) -> ImageSet | None:
    """Read the images that ``augment.pool`` names, if the run uses any.

    Raises:
        UsageError: if they cannot be used: see `read_image_set`.
    """
    if config.augment.mode is AugmentMode.none:
        return None
    if depth is not None:
        raise UsageError("augment: synthetic images are for studies of images, not of volumes")
    images = read_image_set(config.augment, task, image_size=config.data.image_size)
    folder = run_dir.pool
    folder.mkdir(parents=True)
    for name in ("images", "labels"):
        np.save(folder / f"{name}.npy", getattr(images.cohort, name))
    write_atomically(folder / provenance.FILE_NAME, provenance.dumps(images.provenance))
    write_atomically(folder / _DIGEST, images.digest)
    return replace(images, cohort=_mapped(folder))


def open_pool(run_dir: RunDir) -> ImageSet | None:
    """The images that `prepare_pool` kept, if it did."""
    folder = run_dir.pool
    if not folder.is_dir():
        return None
    return ImageSet(
        cohort=_mapped(folder),
        provenance=provenance.read_file(folder / provenance.FILE_NAME),
        digest=(folder / _DIGEST).read_text(),
    )


def _mapped(folder: Path) -> Cohort:
    labels = np.load(folder / "labels.npy")
    return Cohort(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=labels,
        patients=np.arange(len(labels)),
        num_patients=len(labels),
        patient_ids=(),
    )


def charge_sites(sources: Sequence[Source], sites: SimulatedSites) -> None:
    """Hold every hospital's ledger to what ``sources`` cost its patients, before they are used.

    Raises:
        UsageError: if a hospital has a cap that they pass, or does not know of having paid.
    """
    for name, source in itertools.product(sites.names, sources):
        setup = sites.setup(name)
        try:
            with setup.open_ledger(setup.budget.unit) as ledger:
                charge(ledger, source, site=name, study=sites.config.data.name, budget=setup.budget)
        except BudgetExceeded as error:
            raise UsageError(_too_dear(source, name)) from error
        except Refusal as error:
            raise UsageError(
                f"{source.what}: {error}; give the folder of ledgers that they were made with, "
                "simulation.ledger_dir=FOLDER"
            ) from error
        except LedgerError as error:
            raise UsageError(f"{name}: {error}") from error


def _too_dear(source: Source, site: str) -> str:
    return (
        f"{source.what}: made without privacy from patients of this study "
        f"({source.provenance.reason}), so their epsilon is infinite and {site} refuses; a run "
        "without caps shows both figures, privacy.budget=inf"
    )


def plan_facts(pool: ImageSet | None, sources: Sequence[Source], config: Config) -> Synthetic:
    """What the server has to know of the images, and of what patients have paid for already."""
    paid = [
        paid_there
        for source in sources
        if source.provenance.kind is Kind.private and source.provenance.concerns(config.data.name)
        for paid_there in source.provenance.charges
    ]
    num_images = 0 if pool is None else pool.cohort.num_patients
    return Synthetic(num_images=num_images, paid=provenance.worst(paid))
