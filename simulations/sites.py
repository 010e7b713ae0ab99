"""Simulated hospitals: a study dealt out into cohorts, and the sites that train on them."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.data.cache import ImageCache
from client.data.cohort import Cohort, load_cohort
from client.data.split import Split, split_patients
from client.data.study import Record, Study, build
from client.synthesis.image_set import ImageSet
from client.synthesis.source import Source
from common.config import Config, DeviceName, Job, SimulationConfig, Trust
from common.errors import LedgerError, UsageError
from common.files import write_atomically
from common.privacy.book import KEY_NAME, LedgerBook
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.privacy.keys import SiteKey
from common.seeds import SimulatedSeeds, derive_seed
from common.task import Task
from server.recipe import default_delta
from simulations.initial_weights import open_initial, prepare_initial
from simulations.partition import partition
from simulations.pool import open_pool, prepare_pool
from simulations.run_dir import RunDir
from simulations.secure_sites import secured

if TYPE_CHECKING:
    import torch
    from flwr.app import Context

    from client.classifier import SiteModel
    from client.local_model import LocalModel
    from client.secure_aggregation.secure_site import SecureSite
    from client.shared_model import SharedModel
    from client.site import Site
    from client.site_setup import SiteSetup
    from client.synthesis.site_generator import SiteGenerator

_READER_KEY = "reader.key"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hospitals:
    """A study dealt out to simulated hospitals, with the held-out parts.

    Attributes:
        study: name of the study.
        task: what its labels mean.
        sites: number of training patients by site name, in order of names.
        num_train_images: over all sites.
        val: images that the model is looked at on after each round.
        test: images that the final model is measured on.
        pool: synthetic images, if the run uses any.
        initial: where the weights come from that the run begins with, if patients may be there.
    """

    study: str
    task: Task
    sites: dict[str, int]
    num_train_images: int
    val: Cohort = field(repr=False)
    test: Cohort = field(repr=False)
    pool: ImageSet | None = None
    initial: tuple[Source, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """What was made from patients before this run and goes into it."""
        return self.initial if self.pool is None else (*self.initial, self.pool.source)

    @property
    def num_classes(self) -> int:
        """Number of outputs of a model for the task."""
        return self.task.num_outputs

    @property
    def depth(self) -> int | None:
        """Slices of a volume, or ``None`` of a study of images."""
        return depth_of(self.test)


def prepare(config: Config, run_dir: RunDir) -> Hospitals:
    """Read the study, deal its training patients out, decode every image once.

    Raises:
        UsageError: if the study cannot be read, or cannot be dealt out as asked.
    """
    study, split, shares = dealt(config, run_dir.phantoms, _reader_key(config, run_dir))
    _check_site_budgets(config, tuple(shares))
    sites: dict[str, int] = {}
    num_images = 0
    for name, records in sorted(shares.items()):
        cohort = load(study, records, config)
        _save_cohort(cohort, name, run_dir, _cohort_key(config, run_dir, name, cohort))
        sites[name] = cohort.num_patients
        num_images += len(cohort.labels)
    test = _held_out(load(study, split.test, config), "test", run_dir)
    return Hospitals(
        study=study.name,
        task=study.task,
        sites=sites,
        num_train_images=num_images,
        val=_held_out(load(study, split.val, config), "val", run_dir),
        test=test,
        pool=prepare_pool(config, study.task, depth_of(test), run_dir),
        initial=prepare_initial(config, run_dir),
    )


def dealt(
    config: Config, phantom_dir: Path, secret: bytes
) -> tuple[Study, Split, dict[str, tuple[Record, ...]]]:
    """Read the study's table, and who goes where; no image is read.

    Args:
        config: of the run.
        phantom_dir: where phantoms are kept if ``data.root`` is not set.
        secret: the key of the patients' hashes; it decides nothing else.

    Returns:
        The study, its three parts, and the training records by the name of the hospital.

    Raises:
        UsageError: if the study cannot be read, or cannot be dealt out as asked.
    """
    num_sites, data = config.federation.num_sites, config.data
    study = build(
        data,
        num_sites=data.phantom.num_hospitals or num_sites,
        phantom_dir=data.root or phantom_dir,
        secret=secret,
    )
    split = split_patients(
        study.records,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=config.split_seed,
    )
    seed = config.partition_seed
    shares = partition(split.train, config.partition, num_sites=num_sites, seed=seed)
    names = _file_names(shares)
    return study, split, {names[site]: records for site, records in shares.items()}


def load(study: Study, records: tuple[Record, ...], config: Config) -> Cohort:
    """The decoded cohort, from the cache of the whole study if there is to be one."""
    data = config.data
    if data.cache_dir is None:
        return load_cohort(study, records, image_size=data.image_size, depth=data.volume.depth)
    settings = (data.kind.value, data.paper_crops, data.window, data.side, data.volume)
    cache = ImageCache(
        folder=data.cache_dir,
        image_size=data.image_size,
        depth=data.volume.depth,
        settings=repr(settings),
    )
    return cache.cohort(study, records, within=study.records)


def _held_out(cohort: Cohort, part: str, run_dir: RunDir) -> Cohort:
    """The cohort with its images on disk; while hospitals train, the memory is theirs."""
    if isinstance(cohort.images, np.memmap):
        return cohort
    path = run_dir.work / f"{part}.npy"
    np.save(path, cohort.images)
    return replace(cohort, images=np.load(path, mmap_mode="r"))


def depth_of(cohort: Cohort) -> int | None:
    """Slices of a volume, or ``None`` of a cohort of images."""
    return cohort.images.shape[2] if cohort.images.ndim == 5 else None


def _reader_key(config: Config, run_dir: RunDir) -> bytes:
    """The key under which the study's reader hides patients, for all simulated hospitals.

    It stays with the ledgers: under a new key each patient they know would be a stranger, and
    counting would start from zero.
    """
    folder = config.simulation.ledger_dir
    if folder is None:
        return _site_key(run_dir.path / "ledger" / _READER_KEY)
    is_new = next(folder.glob("*/*.sqlite"), None) is None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = (SiteKey.load_or_create if is_new else SiteKey.load)(folder / _READER_KEY)
    except (OSError, LedgerError) as error:
        raise UsageError(f"simulation.ledger_dir={folder}: {_READER_KEY}: {error}") from error
    return key.cohort_key


def _file_names(shares: dict[str, tuple[Record, ...]]) -> dict[str, str]:
    """Site names that are safe as file names."""
    names = {site: re.sub(r"[^A-Za-z0-9._-]+", "-", site).strip(".-") for site in shares}
    if len(set(names.values())) != len(names) or not all(names.values()):
        raise UsageError(f"sites {sorted(shares)}: names must differ in letters and digits")
    return names


def _check_site_budgets(config: Config, sites: tuple[str, ...]) -> None:
    unknown = sorted(set(config.privacy.caps()) - set(sites))
    if unknown:
        raise UsageError(
            f"privacy.site_budgets.{unknown[0]}: no such site; there are {', '.join(sorted(sites))}"
        )


def _book(config: Config, site: str) -> Path | None:
    folder = config.simulation.ledger_dir
    return None if folder is None else folder / site


def _cohort_key(config: Config, run_dir: RunDir, site: str, cohort: Cohort) -> bytes:
    """The key under which the site's ledgers know its patients."""
    folder = _book(config, site)
    if folder is None:
        return _site_key(run_dir.ledger(site).with_suffix(".cohort-key"))
    try:
        key = LedgerBook.at(folder).key.cohort_key
        for other in sorted(folder.parent.glob(f"*/{KEY_NAME}")):
            book = LedgerBook.at(other.parent)
            moved = 0 if other.parent == folder else book.num_known(cohort.patient_ids)
            if moved:
                raise UsageError(
                    f"simulation.ledger_dir={folder.parent}: {moved} patients of {site} are in "
                    f"ledgers of {other.parent.name}, and sites do not count each other's work; "
                    "keep the partition (seed, federation.num_sites) or use another folder"
                )
    except LedgerError as error:
        raise UsageError(f"simulation.ledger_dir={folder.parent}: {site}: {error}") from error
    return key


def _save_cohort(cohort: Cohort, site: str, run_dir: RunDir, key: bytes) -> None:
    """Keep decoded images where every actor can map them, and a keyed name of the cohort."""
    folder = run_dir.cohort(site)
    folder.mkdir(parents=True)
    for name in ("images", "labels", "patients"):
        np.save(folder / f"{name}.npy", getattr(cohort, name))
    facts = {
        "num_patients": cohort.num_patients,
        "patient_hashes": patient_hashes(cohort.patient_ids, key),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def _site_key(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(32), mode=0o600)
    return bytes.fromhex(path.read_text())


@dataclass(frozen=True, kw_only=True)
class SimulatedSites:
    """Opens the simulated hospital that a Flower node stands for; kept warm in its process."""

    config: Config
    run_dir: RunDir
    names: tuple[str, ...]
    num_classes: int

    def __call__(self, context: Context) -> Site | SecureSite:
        """The site of this node."""
        name = self.names[int(context.node_config["partition-id"])]
        key = (str(self.run_dir.path), name)
        site = _open_sites.pop(key, None)
        if site is None:
            import torch

            from client.site import Site

            while len(_open_sites) >= self.config.simulation.open_sites:
                del _open_sites[next(iter(_open_sites))]
            torch.set_num_threads(max(1, int(self.config.simulation.cpus_per_site)))
            site = self._open(Site(self.setup(name)), name)
        _open_sites[key] = site
        return site

    def _open(self, site: Site, name: str) -> Site | SecureSite:
        federation = self.config.federation
        if federation.trust is Trust.local:
            return site
        sites = tuple(federation.sites) or self.names
        seed = self.config.seed
        return secured(site, name, seed=seed, sites=sites, run_dir=self.run_dir)

    def setup(self, name: str) -> SiteSetup:
        """What the simulated hospital ``name`` owns."""
        from client.site_setup import SiteSetup

        folder = self.run_dir.cohort(name)
        facts = json.loads((folder / "facts.json").read_text())
        cohort = Cohort(
            images=np.load(folder / "images.npy", mmap_mode="r"),
            labels=np.load(folder / "labels.npy"),
            patients=np.load(folder / "patients.npy"),
            num_patients=facts["num_patients"],
            patient_ids=(),
        )
        privacy = self.config.privacy
        return SiteSetup(
            name=name,
            cohort=cohort,
            patient_hashes=tuple(facts["patient_hashes"]),
            ledger=self.run_dir.ledger(name),
            book=_book(self.config, name),
            replies=self.run_dir.replies(name),
            budget=Budget(
                epsilon=privacy.budget_of(name),
                delta=privacy.delta or default_delta(cohort.num_patients),
                accountant=privacy.accountant.value,
                unit=privacy.unit,
            ),
            model=self._model(depth_of(cohort)),
            seeds=SimulatedSeeds(run_seed=self._run_seed(), site=name),
            augmentation=self.config.training.augmentation,
            memory_bytes=_memory_bytes(self.config),
            study=self.config.data.name,
            pool=open_pool(self.run_dir),
            initial=open_initial(self.run_dir),
            cache=self._features_cache(),
            device=device_for(self.config.simulation),
        )

    def _model(self, depth: int | None) -> LocalModel:
        if self.config.job is Job.synthesize:
            return shared_generator(self.config, self.num_classes)
        from client.shared_model import SharedModel

        own = shared_model(self.config, self.num_classes, depth)
        # What is trained may change within a run, after synthetic images have had their turn.
        return _models.setdefault((str(self.run_dir.path), repr(own)), SharedModel(own))

    def _features_cache(self) -> Path | None:
        """Beside decoded images, if there is a folder; hospitals that are closed need one."""
        if len(self.names) > self.config.simulation.open_sites:
            return features_cache(self.config) or self.run_dir.work / "features"
        return features_cache(self.config)

    def _run_seed(self) -> int:
        """The seed of draws and noise; where ledgers outlive runs, one of this run alone.

        The same noise in two releases about one cohort would cancel, and their events in the
        ledger would not compose.
        """
        own = self.config.simulation.noise_seed
        seed = self.config.seed if own is None else own
        if self.config.simulation.ledger_dir is None:
            return seed
        return derive_seed(seed, self.run_dir.run_id.read_text().strip())


def device_for(simulation: SimulationConfig) -> torch.device:
    """Where this process computes: on a GPU, if its share of one allows and there is one.

    Raises:
        UsageError: if it has a share, and torch finds none.
    """
    from client.devices import chosen

    match simulation.gpus_per_site:
        case None:
            return chosen(DeviceName.auto)
        case 0:
            return chosen(DeviceName.cpu)
        case share:
            return chosen(DeviceName.cuda, f"simulation.gpus_per_site={share:g}")


def features_cache(config: Config) -> Path | None:
    """Where features of images are kept, beside decoded images."""
    folder = config.data.cache_dir
    return None if folder is None else folder / "features"


def _memory_bytes(config: Config) -> float | None:
    limit = config.training.memory_gb
    return None if limit is None else limit * 1e9


# In order of use: the first one was asked longest ago.
_open_sites: dict[tuple[str, str], Site | SecureSite] = {}
_models: dict[tuple[str, str], SharedModel] = {}


def close_sites(run_dir: RunDir) -> None:
    """Forget the sites of a run that is over, in a process that goes on to others."""
    for known in (_open_sites, _models):
        for key in [key for key in known if key[0] == str(run_dir.path)]:
            del known[key]


def shared_model(config: Config, num_classes: int, depth: int | None = None) -> SiteModel:
    """How every simulated hospital, and the server, builds the model; for volumes, of a depth."""
    from client.classifier import SiteModel

    return SiteModel(
        config=config.model,
        finetune=config.finetune,
        image_size=config.data.image_size,
        num_classes=num_classes,
        seed=derive_seed(config.seed, "model"),
        depth=depth,
    )


def shared_generator(config: Config, num_classes: int) -> SiteGenerator:
    """How every simulated hospital, and the server, builds the generator."""
    from client.synthesis.site_generator import SiteGenerator
    from common.generators.blueprint import Blueprint

    blueprint = Blueprint(
        settings=config.gan.settings(),
        image_size=config.data.image_size,
        num_classes=num_classes,
    )
    return SiteGenerator(blueprint=blueprint, seed=derive_seed(config.seed, "gan"))
