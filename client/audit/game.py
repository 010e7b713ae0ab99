"""The attacker's game: canaries are there or not, the site trains, the attacker looks on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from client.audit.canary import Deck
from client.audit.system import AuditedModel, System
from client.dp.training import RoundSeeds
from client.local_model import LocalModel, Surroundings
from client.site import units
from client.site_setup import SiteSetup
from common import models
from common.config import ClippingKind, Unit
from common.errors import RunFailed, UsageError
from common.messages import Reason, Recipe, Status, TrainReply, TrainRequest
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.seeds import derive_seed

_OWN, _OTHER = "audited", "other"
_KEY = b"canaries are nobody"  # no person is behind the identifiers that it hashes


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is audited (public).

    Attributes:
        recipe: of each round.
        rounds: how many.
        model: the shared model; none to audit the mechanism alone.
        num_classes: of the model's labels.
        image_shape: of what it takes, channels first.
    """

    recipe: Recipe
    rounds: int
    model: LocalModel | None
    num_classes: int = 2
    image_shape: tuple[int, ...] = (1, 1, 1)

    @property
    def steps(self) -> int:
        """Of all rounds together."""
        return self.rounds * self.recipe.steps

    @property
    def blank(self) -> bool:
        """Whether who is replaced by nothing has images without a gradient instead of none.

        An image that is its own privacy unit has no place in a cohort that could stay empty.
        """
        return self.recipe.unit == Unit.image.value

    def deck(self, *, num_canaries: int, num_ordinary: int, opposed: bool = False) -> Deck:
        """Patients that fit the model and the recipe."""
        by_patient = self.recipe.unit == Unit.patient.value
        return Deck(
            num_classes=self.num_classes,
            num_canaries=num_canaries,
            num_ordinary=num_ordinary,
            opposed=opposed,
            images_each=self.recipe.images_per_patient if by_patient else 1,
            image_shape=self.image_shape,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Play:
    """What an attacker saw of one run, and the truth.

    Attributes:
        present: (K,) which canaries were there.
        seen: (K, rounds, steps) what was released along each canary's weight, in units of the
            clipping norm and of the sum over patients: 1 for a canary that was drawn, plus noise.
        elsewhere: the same of another site of the same run, which holds no canary.
        claim: the audited site's spend statement after the last round.
    """

    present: NDArray[np.bool_]
    seen: NDArray[np.float64]
    elsewhere: NDArray[np.float64]
    claim: dict[str, Any]


def play(
    subject: Subject,
    deck: Deck,
    system: System,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Play:
    """One run at two sites; a coin decides of each canary whether it is at the first.

    Everything that is written lies in a folder that is gone afterwards.

    Args:
        subject: what is audited.
        deck: who is in the cohort.
        system: the parts of the sites.
        seed: decides the coins, the ordinary patients and, in a simulation, the run.
        on_step: called after each step of the audited site.

    Raises:
        UsageError: if private training does not cover the model.
        RunFailed: if a site does not train.
    """
    coins = np.random.default_rng(derive_seed(seed, "coins"))
    present = coins.random(deck.num_canaries) < 0.5
    run_seed = derive_seed(seed, "run")
    with tempfile.TemporaryDirectory(prefix="fedward-audit-") as folder:
        nobody = np.zeros_like(present)
        elsewhere = _Visit(subject, deck, system, Path(folder) / _OTHER).run(nobody, run_seed)
        visit = _Visit(subject, deck, system, Path(folder) / _OWN, on_step)
        seen = visit.run(present, run_seed)
    return Play(present=present, seen=seen, elsewhere=elsewhere, claim=visit.claim)


class _Visit:
    """A whole run at one site, which is called as its folder is."""

    def __init__(
        self,
        subject: Subject,
        deck: Deck,
        system: System,
        folder: Path,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._subject, self._deck, self._system = subject, deck, system
        self._folder, self._on_step = folder, on_step
        self._model = AuditedModel(
            subject.model, deck, ClippingKind(subject.recipe.clipping), system
        )
        self.claim: dict[str, Any] = {}

    def run(self, present: NDArray[np.bool_], run_seed: int) -> NDArray[np.float64]:
        """What is seen (K, rounds, steps); then ``claim`` is what the site has spent."""
        site = self._system.site(self._setup(present, run_seed))
        first = self._model.build()
        request = TrainRequest(
            run_id=f"audit-{run_seed}",
            round=1,
            recipe=self._subject.recipe,
            frozen_sha256=models.frozen_sha256(first),
            weights=models.trainable_weights(first),
        )
        released: list[Tensor] = []
        for number in range(1, self._subject.rounds + 1):
            request = replace(request, round=number)
            with _watched(self._model, released, self._on_step):
                reply = site.train(request)
            _require_trained(reply)
            assert reply.weights is not None
            assert reply.spend is not None
            request, self.claim = replace(request, weights=reply.weights), reply.spend
        return _seen(self._subject, self._deck, released)

    def _setup(self, present: NDArray[np.bool_], run_seed: int) -> SiteSetup:
        recipe, name = self._subject.recipe, self._folder.name
        cohort = self._deck.cohort(present, run_seed, blank=self._subject.blank)
        return SiteSetup(
            name=name,
            cohort=cohort,
            patient_hashes=patient_hashes(cohort.patient_ids, _KEY),
            ledger=self._folder / "ledger.sqlite",
            replies=self._folder / "replies",
            budget=Budget(
                epsilon=math.inf,
                delta=recipe.delta,
                accountant=recipe.accountant,
                unit=Unit(recipe.unit),
            ),
            model=self._model,
            seeds=self._system.seeds(run_seed, name),
        )


class Table:
    """Where the same game is played over and over, with a warm model and without a ledger.

    Training is the site's own; what it costs is known from `play`.
    """

    def __init__(self, subject: Subject, deck: Deck, system: System) -> None:
        self._subject, self._deck, self._system = subject, deck, system
        recipe = subject.recipe
        self._model = AuditedModel(subject.model, deck, ClippingKind(recipe.clipping), system)
        nobody = deck.cohort(np.zeros(deck.num_canaries, dtype=bool), 0, blank=subject.blank)
        self._training = self._model.prepare(recipe, Surroundings(cohort=nobody))
        self._first = models.trainable_weights(self._training.model)

    def play(self, present: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
        """What is seen, (K, rounds, steps), of a run with the canaries of ``present`` (K,)."""
        subject, recipe = self._subject, self._subject.recipe
        run_seed = derive_seed(seed, "run")
        cohort = self._deck.cohort(present, run_seed, blank=subject.blank)
        seeds = self._system.seeds(run_seed, _OWN)
        models.load_trainable_weights(self._training.model, self._first)
        released: list[Tensor] = []
        with _watched(self._model, released):
            for number in range(1, subject.rounds + 1):
                of_round = RoundSeeds(
                    sampling=seeds.seed(number, "sampling"), noise=seeds.seed(number, "noise")
                )
                self._training.train(units(cohort, recipe.unit), recipe, of_round)
        return _seen(subject, self._deck, released)


def _seen(subject: Subject, deck: Deck, released: list[Tensor]) -> NDArray[np.float64]:
    recipe = subject.recipe
    if len(released) != subject.steps:
        raise RunFailed(f"{len(released)} steps were taken, and {subject.steps} were asked for")
    # public: what the sum over patients is divided by
    expected = recipe.sampling_rate * deck.num_patients / recipe.max_grad_norm
    shape = (deck.num_canaries, subject.rounds, recipe.steps)
    return (torch.stack(released, 1).double() * expected).numpy().reshape(shape)


@contextmanager
def _watched(
    model: AuditedModel, released: list[Tensor], on_step: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Keep what each optimiser step is taken on, along the canaries' weights: (K,) each time."""

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        mine = model.model.canaries.weight
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter is mine:
                    released.append(_gradient(parameter)[:, 0].detach().clone())
                    on_step()

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "a step was taken without a gradient"
    return parameter.grad


def _require_trained(reply: TrainReply) -> None:
    if reply.status is Status.trained:
        return
    if reply.reason is Reason.model_mismatch:
        raise UsageError("private training does not cover this model, so there is nothing to audit")
    raise RunFailed(f"the audited site did not train ({reply.reason})")
