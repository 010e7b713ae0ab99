"""A hospital's side of the federation: plan, reserve, train, commit, reply."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from client.data.cohort import Cohort
from client.dp import engines
from client.dp.check import check_engine, made_up_batch
from client.dp.clipping import Clipping
from client.dp.engine import Engine
from client.dp.memory import images_that_fit
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds, Trainee, train_round
from common import models
from common.config import (
    AugmentationConfig,
    EngineName,
    FinetuneConfig,
    ModelConfig,
    Precision,
    Unit,
)
from common.errors import LedgerError, Refusal, UsageError
from common.files import write_atomically
from common.messages import Reason, Recipe, SiteDescription, Status, TrainReply, TrainRequest
from common.privacy.book import BookedLedger, LedgerBook
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.cohort import fingerprint_of
from common.privacy.events import Event, NonPrivateRelease, PoissonGaussianSteps
from common.privacy.ledger import Cohort as LedgerCohort
from common.privacy.ledger import Ledger
from common.seeds import SeedSource


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteModel:
    """How the site builds the shared model (public); with ``depth``, one for volumes."""

    config: ModelConfig
    finetune: FinetuneConfig
    image_size: int
    num_classes: int
    seed: int
    depth: int | None = None

    def build(self) -> nn.Module:
        """A fresh model with its trainable weights marked."""
        return models.build(
            self.config,
            self.finetune,
            image_size=self.image_size,
            num_classes=self.num_classes,
            seed=self.seed,
            depth=self.depth,
        )


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
    """

    name: str
    cohort: Cohort
    patient_hashes: tuple[str, ...] = field(repr=False)
    ledger: Path
    book: Path | None = None
    replies: Path
    budget: Budget
    model: SiteModel
    seeds: SeedSource
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    memory_bytes: float | None = None

    def open_ledger(self, unit: Unit) -> Ledger | BookedLedger:
        """The cohort's ledger, verified.

        Raises:
            LedgerError: if it cannot be opened or trusted.
        """
        counts = np.bincount(self.cohort.patients)
        about = LedgerCohort(
            fingerprint=fingerprint_of(self.patient_hashes),
            unit=unit,
            images_per_patient=int(counts.max()) if unit is Unit.image else 1,
            patient_hashes=self.patient_hashes,
        )
        if self.book is not None:
            return LedgerBook.at(self.book).open_booked(about)
        return Ledger.open(
            self.ledger,
            cohort=about.fingerprint,
            unit=about.unit,
            images_per_patient=about.images_per_patient,
            patient_hashes=about.patient_hashes,
        )


class Site:
    """Answers requests of the server; the only holder of patients, budget and ledger.

    Guarantees:
        Nothing is trained before its event is durably in the ledger; a request that would pass
        the budget is refused; a repeated request gets the stored reply, never new noise.
    """

    def __init__(self, setup: SiteSetup) -> None:
        self._setup = setup
        self._lock = threading.Lock()  # one model; and two trainings of a request are two noises
        self._trainee: Trainee | None = None
        self._kind: tuple[bool, str, str, str] | None = None
        self._frozen_sha256 = ""

    def describe(self) -> SiteDescription:
        """Public facts, sent before the first round."""
        return SiteDescription(site=self._setup.name, num_patients=self._setup.cohort.num_patients)

    def train(self, request: TrainRequest) -> TrainReply:
        """Train one round, or say by a code why not."""
        if request.recipe.unit != self._setup.budget.unit.value:
            # refused before the ledger is opened: a new one would be bound to this unit for ever
            return self._refuse(request, Reason.bad_request, None)
        try:
            with self._lock, self._setup.open_ledger(self._setup.budget.unit) as ledger:
                try:
                    return self._train(request, ledger)
                except Refusal as refusal:
                    return self._refuse(request, Reason(refusal.code), ledger)
        except LedgerError:
            return self._refuse(request, Reason.ledger_unavailable, None)

    def _train(self, request: TrainRequest, ledger: Ledger | BookedLedger) -> TrainReply:
        trainee = self._prepared(request)
        reservation = ledger.reserve(
            request_id=request.request_id,
            events=(event_of(request.recipe),),
            purpose="train",
            budget=self._budget(request.recipe),
        )
        stored = self._reply_path(request)
        lost = reservation.state is State.committed and not stored.is_file()
        if lost or reservation.state is State.abandoned:
            return self._refuse(request, Reason.bad_request, ledger)
        if not stored.is_file():
            self._train_and_store(request, trainee, stored)
        if reservation.state is State.reserved:
            ledger.commit(request.request_id)
        weights = _read_weights(stored)
        return TrainReply(
            site=self._setup.name,
            status=Status.trained,
            num_patients=self._setup.cohort.num_patients,
            spend=self._spend(request.recipe, ledger),
            weights=weights,
        )

    def _prepared(self, request: TrainRequest) -> Trainee:
        """The warm model with the request's weights, checked before anything is reserved."""
        recipe = request.recipe
        kind = (recipe.private, recipe.engine, recipe.precision, recipe.clipping)
        if self._trainee is None:
            self._trainee, self._kind = self._built(recipe), kind
        if self._kind != kind:
            raise ModelMismatch(
                "this site's model is warm for another engine, precision or clipping"
            )
        if request.frozen_sha256 != self._frozen_sha256:
            raise ModelMismatch("frozen weights differ from the server's")
        try:
            models.load_trainable_weights(self._trainee.model, request.weights)
        except ValueError as error:
            raise ModelMismatch(str(error)) from error
        return self._trainee

    def _built(self, recipe: Recipe) -> Trainee:
        model = self._setup.model.build()
        self._frozen_sha256 = models.frozen_sha256(model)
        if not recipe.private:
            return Trainee(model=model, engine=None, augmentation=self._setup.augmentation)
        try:
            engine, most_images = self._engine_of(model, recipe)
        except UsageError as error:
            raise ModelMismatch(str(error)) from error
        return Trainee(
            model=model,
            engine=engine,
            augmentation=self._setup.augmentation,
            most_images=most_images,
        )

    def _engine_of(self, model: nn.Module, recipe: Recipe) -> tuple[Engine, int | None]:
        """A checked engine, and how many images fit into the site's memory."""
        name, precision = EngineName(recipe.engine), Precision(recipe.precision)
        together = recipe.images_per_patient * recipe.augmentation_multiplicity > 1
        batch = self._made_up_batch(one_image_each=name is EngineName.opacus_ghost and not together)
        engine = engines.build(name, model)
        check_engine(model, engine, batch)
        engine.clipped_sums(batch, Clipping(kind=recipe.clipping, max_grad_norm=1.0))
        if precision is not Precision.fp32:  # compared in full precision, used in half
            engine = engines.build(name, model, precision)
        limit = self._setup.memory_bytes
        if limit is None:
            return engine, None
        return engine, images_that_fit(model, batch, precision, limit_bytes=limit)

    def _made_up_batch(self, *, one_image_each: bool) -> PatientBatch:
        cohort = self._setup.cohort
        return made_up_batch(
            cohort.images.shape[1:],
            num_outputs=self._setup.model.num_classes,
            multilabel=cohort.labels.ndim > 1,
            one_image_each=one_image_each,
        )

    def _train_and_store(self, request: TrainRequest, trainee: Trainee, stored: Path) -> None:
        seeds = RoundSeeds(
            sampling=self._setup.seeds.seed(request.round, "sampling"),
            noise=self._setup.seeds.seed(request.round, "noise"),
        )
        cohort = units(self._setup.cohort, request.recipe.unit)
        train_round(trainee, cohort, request.recipe, seeds)
        weights = models.trainable_weights(trainee.model)
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise FloatingPointError("training left weights that are not finite")
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(stored, save(weights))
        for old in stored.parent.glob("*.safetensors"):
            if old != stored:
                old.unlink(missing_ok=True)

    def _reply_path(self, request: TrainRequest) -> Path:
        digest = hashlib.sha256(request.request_id.encode()).hexdigest()[:32]
        return self._setup.replies / f"{digest}.safetensors"

    def _budget(self, recipe: Recipe) -> Budget:
        return replace(self._setup.budget, delta=min(self._setup.budget.delta, recipe.delta))

    def _spend(self, recipe: Recipe, ledger: Ledger | BookedLedger) -> dict[str, object]:
        return ledger.statement(self._budget(recipe)).to_dict()

    def _refuse(
        self, request: TrainRequest, reason: Reason, ledger: Ledger | BookedLedger | None
    ) -> TrainReply:
        return TrainReply(
            site=self._setup.name,
            status=Status.refused,
            num_patients=self._setup.cohort.num_patients,
            reason=reason,
            spend=None if ledger is None else self._spend(request.recipe, ledger),
        )


class ModelMismatch(Refusal):
    """The server's model is not the site's, or private training does not cover it."""

    code = Reason.model_mismatch.value


def event_of(recipe: Recipe) -> Event:
    """What one round of a recipe costs."""
    if not recipe.private:
        return NonPrivateRelease(reason="trained without privacy")
    return PoissonGaussianSteps(
        sampling_rate=recipe.sampling_rate,
        noise_multiplier=recipe.noise_multiplier,
        steps=recipe.steps,
    )


def units(cohort: Cohort, unit: str) -> Cohort:
    """The cohort seen as privacy units: patients, or every image on its own."""
    if unit == "patient":
        return cohort
    num_images = len(cohort.labels)
    return replace(
        cohort,
        patients=np.arange(num_images),
        num_patients=num_images,
        patient_ids=tuple(map(str, range(num_images))),
    )


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise LedgerError("the stored reply cannot be read") from error
