"""What a hospital brings to the federation: patients, ledger, cap, model and randomness."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from client import devices
from client.data.cohort import Cohort
from client.local_model import LocalModel
from client.synthesis.image_set import ImageSet
from client.synthesis.source import Source
from common.config import AugmentationConfig, Unit
from common.privacy.book import BookedLedger, LedgerBook
from common.privacy.budget import Budget
from common.privacy.cohort import fingerprint_of
from common.privacy.ledger import Cohort as LedgerCohort
from common.privacy.ledger import Ledger
from common.seeds import SeedSource


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteSetup:
    """What a site owns. Nothing of it comes from the server.

    Attributes:
        name: public name of the site.
        cohort: training images (private).
        patient_hashes: keyed hashes of the cohort's patients; the ledger's subject.
        ledger: path of the cohort's ledger, if ``book`` is not given.
        book: folder of all ledgers of the site, where cohorts that overlap are charged together.
        replies: folder of replies that a repeated request gets again.
        budget: the site's own cap.
        model: how to build the shared model.
        seeds: where randomness comes from.
        augmentation: how images are changed at random when they are used.
        memory_bytes: what one training step may take; no bound of the site's own if ``None``.
        study: name of the study that the cohort is of (public).
        pool: synthetic images that the site uses.
        initial: where the weights come from that training begins with.
        cache: folder for what a frozen backbone says of images.
        device: where the model is trained.
    """

    name: str
    cohort: Cohort
    patient_hashes: tuple[str, ...] = field(repr=False)
    ledger: Path
    book: Path | None = None
    replies: Path
    budget: Budget
    model: LocalModel
    seeds: SeedSource
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    memory_bytes: float | None = None
    study: str = ""
    pool: ImageSet | None = None
    initial: tuple[Source, ...] = ()
    cache: Path | None = None
    device: torch.device = devices.CPU

    @property
    def sources(self) -> tuple[Source, ...]:
        """What was made from patients before this training and goes into it."""
        return self.initial if self.pool is None else (*self.initial, self.pool.source)

    def counted(self, unit: Unit) -> LedgerCohort:
        """The cohort as its ledger knows it: how many images a patient has stays at the site."""
        counts = np.bincount(self.cohort.patients)
        return LedgerCohort(
            fingerprint=fingerprint_of(self.patient_hashes),
            unit=unit,
            images_per_patient=int(counts.max()) if unit is Unit.image else 1,
            patient_hashes=self.patient_hashes,
        )

    def open_ledger(self, unit: Unit) -> Ledger | BookedLedger:
        """The cohort's ledger, verified.

        Raises:
            LedgerError: if it cannot be opened or trusted.
        """
        about = self.counted(unit)
        if self.book is not None:
            return LedgerBook.at(self.book).open_booked(about)
        return Ledger.open(
            self.ledger,
            cohort=about.fingerprint,
            unit=about.unit,
            images_per_patient=about.images_per_patient,
            patient_hashes=about.patient_hashes,
        )
