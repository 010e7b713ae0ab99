"""What is audited: a hospital's own parts, each of which can be exchanged for one with a fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from client.audit.canary import CanaryModel, Deck
from client.data.cohort import Cohort
from client.dp.check import check_engine, made_up_batch
from client.dp.engine import BookkeepingEngine, Engine
from client.dp.loss import ImageLosses
from client.dp.training import RoundSeeds, Trainee, train_round
from client.local_model import LocalModel, LocalTraining, ModelMismatch, Surroundings
from client.site import Site
from client.site_setup import SiteSetup
from common.config import ClippingKind, Precision
from common.errors import UsageError
from common.messages import Recipe
from common.seeds import SeedSource, SimulatedSeeds

Training = Callable[[Trainee, Cohort, Recipe, RoundSeeds], None]
MakeEngine = Callable[[nn.Module, Precision, ImageLosses], Engine]
# Of one run, from its seed and the site's name.
MakeSeeds = Callable[[int, str], SeedSource]


def simulated_seeds(run_seed: int, site: str) -> SeedSource:
    """What a site of a simulation draws from."""
    return SimulatedSeeds(run_seed=run_seed, site=site)


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """The parts of a site, by default those that run in a hospital.

    Attributes:
        train: takes the steps of a round.
        engine: clips the gradients of patients.
        seeds: where a run's randomness comes from.
        site: answers the requests, and keeps the ledger.
    """

    train: Training = train_round
    engine: MakeEngine = BookkeepingEngine
    seeds: MakeSeeds = simulated_seeds
    site: Callable[[SiteSetup], Site] = Site


class AuditedModel:
    """The shared model with weights for canaries; a `LocalModel` of a site.

    Clipping layer by layer leaves a canary, which lies in one layer, a share of the bound only. So
    the model's own weights are frozen then, and that layer is the only one.

    Attributes:
        model: the last that was prepared.
    """

    model: CanaryModel

    def __init__(
        self, inner: LocalModel | None, deck: Deck, clipping: ClippingKind, system: System
    ) -> None:
        self._inner = inner
        self._deck = deck
        self._freezes = clipping is ClippingKind.per_layer
        self._system = system

    def build(self) -> CanaryModel:
        """See `LocalModel`."""
        if self._inner is None:
            return CanaryModel(None, self._deck)
        inner = self._inner.build()
        return CanaryModel(inner.requires_grad_(False) if self._freezes else inner, self._deck)

    def prepare(self, recipe: Recipe, around: Surroundings) -> LocalTraining:
        """See `LocalModel`."""
        model = self.build()
        if self._inner is not None:
            self._check(model)
        engine = self._system.engine(model, Precision(recipe.precision), self._deck.losses)
        self.model = model
        trainee = Trainee(model=model, engine=engine, augmentation=around.augmentation)
        return _CanaryTraining(trainee=trainee, training=self._system.train)

    def _check(self, model: CanaryModel) -> None:
        """As a site does, with the loss that everybody has."""
        batch = made_up_batch(
            self._deck.image_shape,
            num_outputs=self._deck.num_classes + self._deck.num_canaries,
            multilabel=False,
            one_image_each=False,
        )
        try:
            check_engine(model, BookkeepingEngine(model), batch)
        except UsageError as error:
            raise ModelMismatch(str(error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _CanaryTraining:
    trainee: Trainee
    training: Training

    @property
    def model(self) -> nn.Module:
        return self.trainee.model

    def train(
        self,
        cohort: Cohort,
        recipe: Recipe,
        seeds: RoundSeeds,
        shift: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `LocalTraining`; canaries know of no shift."""
        if shift:
            raise ValueError("recipes with a shift are audited without it")
        self.training(self.trainee, cohort, recipe, seeds)
