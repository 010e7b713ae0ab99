"""A hospital's side of the federation: plan, reserve, train, commit, reply."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from client import control, devices
from client.begun import Begun
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds
from client.kept import Kept
from client.local_model import LocalTraining, ModelMismatch, Surroundings
from client.out_of_memory import train_within_memory
from client.site_setup import SiteSetup
from client.synthesis.charging import charge
from common import models
from common.config import (
    Personal,
)
from common.errors import LedgerError, Refusal
from common.messages import (
    Reason,
    Recipe,
    SiteDescription,
    Status,
    TrainReply,
    TrainRequest,
    Weights,
)
from common.privacy.book import BookedLedger
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.events import Event, NonPrivateRelease, PoissonGaussianSteps
from common.privacy.ledger import Ledger


class BadRequest(Refusal):
    """A request that the site cannot do as it was asked."""

    code = Reason.bad_request.value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Duty:
    """What is trained once, under one entry of the ledger, and kept in one file.

    Attributes:
        request_id: of the entry.
        purpose: in the entry: ``"train"`` for a round, ``"tune"`` for the site's own model.
        stored: the file.
    """

    request_id: str
    purpose: str
    stored: Path

    @property
    def releases(self) -> bool:
        """Whether what is trained may leave the site."""
        return self.purpose == "train"

    @property
    def seeds(self) -> str:
        """Before the names of its seeds: the last round has the same number as what tunes it."""
        return "" if self.releases else f"{self.purpose}_"


class Site:
    """Answers requests of the server; the only holder of patients, budget and ledger.

    Guarantees:
        Nothing is trained before its event is durably in the ledger; a request that would pass
        the budget is refused; a repeated request gets the stored reply, never new noise.
    """

    def __init__(self, setup: SiteSetup) -> None:
        self._setup = setup
        self._lock = threading.Lock()  # one model; and two trainings of a request are two noises
        self._training: LocalTraining | None = None
        self._kind: tuple[object, ...] | None = None
        self._frozen_sha256 = ""
        self._first: Weights | None = None  # layers that may stay here, as the model was built
        self._shift: Weights = {}

    def describe(self) -> SiteDescription:
        """Public facts, sent before the first round."""
        return SiteDescription(site=self._setup.name, num_patients=self._setup.cohort.num_patients)

    @property
    def device(self) -> torch.device:
        """Where the site trains."""
        return self._setup.device

    def hold_to(self, budget: Budget) -> None:
        """From now on the cap is ``budget``: a policy may change while the site is warm."""
        with self._lock:
            self._setup = replace(self._setup, budget=budget)

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

    def contribute(
        self,
        request: TrainRequest,
        event: Event,
        compute: Callable[[LocalTraining, Cohort, RoundSeeds], bytes],
    ) -> tuple[bytes, dict[str, object]]:
        """Let ``compute`` make what leaves for a sum, once, under one entry of the ledger.

        Args:
            request: with the model that it is about.
            event: what it costs.
            compute: gets the warm model, the cohort by unit and the round's seeds.

        Returns:
            What it made (private, released under ``event``), and the spend statement.

        Raises:
            Refusal: if budget or model do not allow it, or the round was charged before: nothing
                is made a second time.
            LedgerError: if the ledger cannot be trusted.
        """
        if request.recipe.unit != self._setup.budget.unit.value:
            raise BadRequest("the unit is not the site's")
        with self._lock, self._setup.open_ledger(self._setup.budget.unit) as ledger:
            training = self._prepared(request)
            self._charge_sources(request.recipe, ledger)
            budget = self._budget(request.recipe)
            reservation = ledger.reserve(
                request_id=request.request_id, events=(event,), purpose="train", budget=budget
            )
            if not reservation.fresh:
                raise BadRequest("this round was charged before, and is not done twice")
            seeds = self._round_seeds(request.round)
            made = compute(training, units(self._setup.cohort, request.recipe.unit), seeds)
            ledger.commit(request.request_id)
            return made, self._spend(request.recipe, ledger)

    def statement(self, recipe: Recipe) -> dict[str, object] | None:
        """The signed spend statement as the recipe counts; none if the site has no such ledger."""
        if recipe.unit != self._setup.budget.unit.value:
            return None
        try:
            with self._lock, self._setup.open_ledger(self._setup.budget.unit) as ledger:
                return self._spend(recipe, ledger)
        except LedgerError:
            return None

    def _round_seeds(self, number: int, prefix: str = "") -> RoundSeeds:
        return RoundSeeds(
            sampling=self._setup.seeds.seed(number, f"{prefix}sampling"),
            noise=self._setup.seeds.seed(number, f"{prefix}noise"),
        )

    def tune(self, request: TrainRequest) -> Weights:
        """Train the last model on for this site alone, once in a run; nothing of it leaves.

        The tuned weights stay in a file of the site's, beside its own layers. They are charged as
        if they were released, so that whatever is made with them later is paid for.

        Args:
            request: the last model, and the recipe of all the steps together.

        Returns:
            Every trainable weight of the tuned model (private, not released).

        Raises:
            Refusal: if budget, pool or model do not allow it; nothing is charged.
            LedgerError: if the ledger or what is stored cannot be trusted.
        """
        if request.recipe.unit != self._setup.budget.unit.value or request.recipe.controlled:
            raise BadRequest("the model is tuned in the site's own unit, without a control variate")
        duty = _Duty(
            request_id=f"{request.run_id}/tune",
            purpose="tune",
            stored=tuned_path(self._setup.replies, request.run_id),
        )
        with self._lock, self._setup.open_ledger(self._setup.budget.unit) as ledger:
            self._training = None  # warm for the rounds' kind of recipe
            try:
                return self._done_once(duty, request, ledger).local
            finally:
                self._training = None

    def _train(self, request: TrainRequest, ledger: Ledger | BookedLedger) -> TrainReply:
        duty = _Duty(
            request_id=request.request_id, purpose="train", stored=self._reply_path(request)
        )
        kept = self._done_once(duty, request, ledger)
        return TrainReply(
            site=self._setup.name,
            status=Status.trained,
            num_patients=self._setup.cohort.num_patients,
            spend=self._spend(request.recipe, ledger),
            weights=kept.weights,
        )

    def _done_once(self, duty: _Duty, request: TrainRequest, ledger: Ledger | BookedLedger) -> Kept:
        """What the duty left; trained now if it was not before, under one entry of the ledger."""
        training = self._prepared(request)
        self._charge_sources(request.recipe, ledger)
        reservation = ledger.reserve(
            request_id=duty.request_id,
            events=(event_of(request.recipe),),
            purpose=duty.purpose,
            budget=self._budget(request.recipe),
        )
        lost = reservation.state is State.committed and not duty.stored.is_file()
        if lost or reservation.state is State.abandoned:
            raise BadRequest("what was trained is lost or given up, and cannot be had again")
        if not duty.stored.is_file():
            seeds = self._draws(duty, request, fresh=reservation.fresh)
            self._train_and_store(duty, request, training, seeds)
        Begun.beside(duty.stored).unlink(missing_ok=True)
        if reservation.state is State.reserved:
            ledger.commit(duty.request_id)
        return Kept.read(duty.stored)

    def _draws(self, duty: _Duty, request: TrainRequest, *, fresh: bool) -> RoundSeeds:
        """Randomness of a duty: fresh for a fresh entry of the ledger, else what it began with."""
        seeds = self._round_seeds(request.round, duty.seeds)
        if seeds.repeatable:
            return seeds
        path = Begun.beside(duty.stored)
        if fresh:
            begun = Begun.with_draws(request, seeds)
            begun.write(path)
            return begun.seeds
        known = Begun.read(path)
        if known is None or not known.is_of(request):
            raise BadRequest("begun with another request, or what it began with is lost")
        return known.seeds

    def _around(self) -> Surroundings:
        setup = self._setup
        return Surroundings(
            cohort=setup.cohort,
            augmentation=setup.augmentation,
            memory_bytes=setup.memory_bytes,
            pool=None if setup.pool is None else setup.pool.cohort,
            cache=setup.cache,
            device=setup.device,
        )

    def _prepared(self, request: TrainRequest) -> LocalTraining:
        """The warm model with the request's weights, checked before anything is reserved."""
        recipe = request.recipe
        kind = _kind_of(recipe)
        if self._training is None:
            self._training, self._kind = self._setup.model.prepare(recipe, self._around()), kind
            self._frozen_sha256 = models.frozen_sha256(self._training.model)
        if self._kind != kind:
            raise ModelMismatch("this site's model is warm for another kind of recipe")
        if request.frozen_sha256 != self._frozen_sha256:
            raise ModelMismatch("frozen weights differ from the server's")
        kept = None
        if recipe.controlled or Personal(recipe.personal) is not Personal.none:
            kept = Kept.last_in(self._setup.replies, request.run_id)
        own = self._own(recipe, {} if kept is None else kept.local)
        try:
            if set(own) & set(request.weights):
                raise ValueError("the server sent layers that stay at the site")
            models.load_trainable_weights(self._training.model, {**request.weights, **own})
            self._shift = control.shift(request, {} if kept is None else kept.control)
        except ValueError as error:
            raise ModelMismatch(str(error)) from error
        return self._training

    def _train_and_store(
        self, duty: _Duty, request: TrainRequest, training: LocalTraining, seeds: RoundSeeds
    ) -> None:
        cohort = units(self._setup.cohort, request.recipe.unit)
        shift, self._shift = self._shift, {}  # a site that waits for its next round needs none
        added = {name: torch.from_numpy(value) for name, value in shift.items()}
        train_within_memory(
            lambda recipe: training.train(cohort, recipe, seeds, added),
            request.recipe,
            start_over=lambda: self._start_over(request),
        )
        training.model.zero_grad()
        devices.give_back(self._setup.device)
        weights = models.trainable_weights(training.model)
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise FloatingPointError("training left weights that are not finite")
        released = {name: weights[name] for name in request.weights if duty.releases}
        Kept(
            run_id=request.run_id,
            weights=released,
            control=control.following(request, released, shift),
            local={name: weights[name] for name in weights.keys() - released.keys()},
        ).write(duty.stored)

    def _start_over(self, request: TrainRequest) -> None:
        """Bring the model back to where the round begins, and free what the attempt had taken."""
        self._prepared(request).model.zero_grad()
        devices.give_back(self._setup.device)

    def _own(self, recipe: Recipe, kept: Weights) -> Weights:
        """The layers that stay here, as the site trained them last or as they began."""
        assert self._training is not None
        model, layers = self._training.model, Personal(recipe.personal)
        if self._first is None:
            may_stay = {n for kind in Personal for n in models.local_names(model, kind)}
            built = models.trainable_weights(model)
            self._first = {name: built[name] for name in may_stay}
        names = models.local_names(model, layers)
        return {name: kept.get(name, self._first[name]) for name in sorted(names)}

    def _charge_sources(self, recipe: Recipe, ledger: Ledger | BookedLedger) -> None:
        setup = self._setup
        for source in setup.sources:
            charge(ledger, source, site=setup.name, study=setup.study, budget=self._budget(recipe))

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


def tuned_path(replies: Path, run_id: str) -> Path:
    """Where a site keeps the last model of a run as it trained it on, beside its replies.

    Each run has a folder of its own: what one run tuned is not lost to the next.
    """
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:32]
    return replies / f"tuned-{digest}" / "model.safetensors"


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


def _kind_of(recipe: Recipe) -> tuple[object, ...]:
    """What a warm model was prepared for; everything else of a recipe may change."""
    return (
        recipe.private,
        recipe.engine,
        recipe.precision,
        recipe.clipping,
        recipe.augmentation_multiplicity,
        recipe.proximal_mu > 0,
        recipe.controlled,
    )
