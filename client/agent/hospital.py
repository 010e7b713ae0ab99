"""From ``site.yaml`` to a site that can train: reads the study, once, and keeps it in memory."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

import torch

from client import devices
from client.agent.agent import Sums
from client.agent.rules import Work
from client.agent.site_file import MADE_UP, SiteFile
from client.classifier import SiteModel
from client.data.cache import ImageCache
from client.data.cohort import Cohort, load_cohort
from client.data.split import split_patients
from client.data.study import Record, Study, build
from client.local_model import LocalModel
from client.secure_aggregation.secure_site import SecureSetup, SecureSite
from client.site import Site
from client.site_setup import SiteSetup
from client.synthesis.site_generator import SiteGenerator
from client.synthesis.source import Source, weights_source
from common import models
from common.config import AugmentMode, Config, Job, StudyKind
from common.errors import UsageError
from common.generators.blueprint import Blueprint
from common.messages import Weights
from common.privacy.book import LedgerBook
from common.privacy.budget import Budget
from common.privacy.cohort import fingerprint_of, patient_hashes
from common.privacy.keys import SiteKey
from common.secure_aggregation.roster import Roster
from common.seeds import SystemSeeds, derive_seed

_log = logging.getLogger("fedward.agent")

# Nothing may be spent until a policy has said how much.
_NOTHING = Budget(epsilon=sys.float_info.min, delta=1e-12)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hospital:
    """A site with its data in memory.

    Attributes:
        site: answers requests; its budget is nothing until it is held to a policy.
        work: what its patients would be used for (public).
        fingerprint: keyed name of the cohort (public).
        weights: trainable weights as the model begins, for their sizes.
        key: the hospital's identity key.
    """

    site: Site
    work: Work
    fingerprint: str
    weights: Weights
    key: SiteKey = field(repr=False)

    def sums(self, file: SiteFile) -> Sums:
        """The site's part in secure sums; its secrets lie in the agent's own folder."""

        def part(roster: Roster) -> SecureSite:
            setup = SecureSetup(roster=roster, key=self.key, state=file.round_state)
            return SecureSite(self.site, setup)

        return Sums(roster=file.roster, part=part)


def open_hospital(file: SiteFile) -> Hospital:
    """Reads the study of ``file`` and builds its model.

    Raises:
        UsageError: The settings, the study or the model are not as they should be.
        LedgerError: The site's key cannot be read or made.
    """
    torch.set_num_threads(file.threads)
    config = file.config()
    if config.augment.mode is not AugmentMode.none:
        raise UsageError(
            f"augment={config.augment.mode.value}: an agent cannot charge for synthetic images yet"
        )
    if config.data.kind is StudyKind.phantom:
        _log.warning("%s serves %s", file.name, MADE_UP)
    book = LedgerBook.at(file.ledgers)
    cohort, study, depth = _cohort(file, config, book.key.cohort_key)
    model, architecture = _model(config, study.task.num_outputs, depth)
    hashes = patient_hashes(cohort.patient_ids, book.key.cohort_key)
    site = Site(
        SiteSetup(
            name=file.name,
            cohort=cohort,
            patient_hashes=hashes,
            ledger=file.ledgers / "unused.sqlite",  # the book holds all of them
            book=file.ledgers,
            replies=file.state / "replies",
            budget=_NOTHING,
            model=model,
            seeds=SystemSeeds(),
            augmentation=config.training.augmentation,
            memory_bytes=None if (gb := config.training.memory_gb) is None else gb * 1e9,
            study=config.data.name,
            initial=_initial(config),
            cache=file.state / "features",
            device=devices.chosen(file.device),
        )
    )
    work = Work(
        study=config.data.name,
        model=architecture,
        generator=config.job is Job.synthesize,
        num_patients=cohort.num_patients,
        num_images=len(cohort.labels),
    )
    return Hospital(
        site=site,
        work=work,
        fingerprint=fingerprint_of(hashes),
        weights=models.trainable_weights(model.build()),
        key=book.key,
    )


def _cohort(file: SiteFile, config: Config, key: bytes) -> tuple[Cohort, Study, int | None]:
    """The training patients' images, decoded; the study; slices of a volume."""
    study = build(
        config.data,
        num_sites=config.federation.num_sites,
        phantom_dir=file.state / "phantoms",
        secret=key,
    )
    split = split_patients(
        study.records,
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.split_seed,
    )
    records = _own(split.train, file.records_of)
    data = config.data
    if data.cache_dir is None:
        cohort = load_cohort(study, records, image_size=data.image_size, depth=data.volume.depth)
    else:
        settings = (data.kind.value, data.paper_crops, data.window, data.side, data.volume)
        cache = ImageCache(
            folder=data.cache_dir,
            image_size=data.image_size,
            depth=data.volume.depth,
            settings=repr(settings),
        )
        cohort = cache.cohort(study, records, within=study.records)
    return cohort, study, cohort.images.shape[2] if cohort.images.ndim == 5 else None


def _initial(config: Config) -> tuple[Source, ...]:
    """Where the weights come from that training begins with, if patients may be there."""
    given = ((config.model.weights, True), (config.model.start, False))
    found = [weights_source(path, public=public) for path, public in given if path is not None]
    return tuple(source for source in found if source is not None)


def _own(records: tuple[Record, ...], site: str | None) -> tuple[Record, ...]:
    if site is None:
        return records
    own = tuple(record for record in records if record.site == site)
    if not own:
        raise UsageError(f"records_of={site}: the study has no training records of it")
    return own


def _model(config: Config, num_classes: int, depth: int | None) -> tuple[LocalModel, str]:
    """How the model is built, as every other site and the server build it, and what it is."""
    if config.job is Job.synthesize:
        blueprint = Blueprint(
            settings=config.gan.settings(),
            image_size=config.data.image_size,
            num_classes=num_classes,
        )
        seed = derive_seed(config.seed, "gan")
        return SiteGenerator(blueprint=blueprint, seed=seed), config.gan.kind.value
    model = SiteModel(
        config=config.model,
        finetune=config.finetune,
        image_size=config.data.image_size,
        num_classes=num_classes,
        seed=derive_seed(config.seed, "model"),
        depth=depth,
    )
    return model, config.model.architecture
