"""Reference models of an attacker: trained as the model under audit was, on other patients.

A hospital has its own patients only. Each pair of references divides those whose membership is in
question into two halves, one for each, so that every patient is unknown to one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.audit.membership import Answers
from client.data.cohort import Cohort
from client.dp import engines
from client.dp.loss import image_losses
from client.dp.training import RoundSeeds, Trainee, train_round
from client.frozen import FrozenBackbone
from client.site import units
from common import models
from common.config import AugmentationConfig, EngineName, Personal, Precision
from common.messages import Recipe, Weights
from common.seeds import derive_seed

_VALUES_AT_ONCE = 1 << 19  # of images together: 128 of 64 pixels
_FEATURES_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class People:
    """Patients whose membership is in question (private).

    Attributes:
        cohort: their images, or features of these; members come first.
        num_members: how many patients were trained on.
    """

    cohort: Cohort = field(repr=False)
    num_members: int

    @classmethod
    def joined(cls, members: Cohort, *others: Cohort) -> People:
        """Members, and the patients of ``others`` after them."""
        parts = (members, *others)
        starts = np.cumsum([0, *(part.num_patients for part in parts)])
        pairs = list(zip(parts, starts, strict=False))
        return cls(
            cohort=Cohort(
                images=np.concatenate([part.images for part in parts]),
                labels=np.concatenate([part.labels for part in parts]),
                patients=np.concatenate([part.patients + start for part, start in pairs]),
                num_patients=int(starts[-1]),
                patient_ids=(),
            ),
            num_members=members.num_patients,
        )

    @property
    def member(self) -> NDArray[np.bool_]:
        """(P,), who was trained on."""
        return np.arange(self.cohort.num_patients) < self.num_members

    def only(self, chosen: NDArray[np.bool_]) -> Cohort:
        """The images of the patients ``chosen`` (P,)."""
        cohort = self.cohort
        rows = np.flatnonzero(chosen[cohort.patients])
        numbers = np.cumsum(chosen) - 1
        return replace(
            cohort,
            images=cohort.images[rows],
            labels=cohort.labels[rows],
            patients=numbers[cohort.patients[rows]],
            num_patients=int(chosen.sum()),
        )


class Laboratory:
    """Asks the model under audit, and trains references.

    A frozen backbone is asked once for each image; references are heads then.

    Attributes:
        takes_features: whether it works on features; `inputs` makes them.
    """

    def __init__(
        self,
        model: nn.Module,
        released: Weights,
        recipe: Recipe,
        rounds: int,
        *,
        image_shape: tuple[int, ...],
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        """Keep everything.

        Args:
            model: as it began, with its trainable weights marked.
            released: the trainable weights of the model under audit.
            recipe: of each of its rounds; its synthetic images and what ties a site to others are
                left out of references.
            rounds: how many there were.
            image_shape: of an image, channels first.
            augmentation: how images were changed in training.

        Raises:
            UsageError: if private training does not cover the model.
            ValueError: if ``released`` does not fit the model.
        """
        self._recipe = replace(
            recipe,
            synthetic_ratio=0.0,
            synthetic_as_patients=False,
            proximal_mu=0.0,
            controlled=False,
            personal=Personal.none.value,
        )
        self._rounds = rounds
        self._augmentation = augmentation or AugmentationConfig()
        self._whole, self._released = model, released
        self._first = models.trainable_weights(model)
        as_it_is = self._augmentation == AugmentationConfig()
        # a frozen backbone answers the same each time only if its images are the same
        as_it_is = as_it_is and recipe.augmentation_multiplicity == 1
        self._backbone = FrozenBackbone.of(model, image_shape) if as_it_is else None
        self.takes_features = self._backbone is not None
        self._model = model if self._backbone is None else self._backbone.head
        models.load_trainable_weights(model, released)
        if self.takes_features:  # no memory to spare, and the result is the same
            self._recipe = replace(self._recipe, physical_batch=_FEATURES_AT_ONCE)
        self._engine = None
        if recipe.private:
            name = EngineName.bookkeeping if self.takes_features else EngineName(recipe.engine)
            precision = Precision.fp32 if self.takes_features else Precision(recipe.precision)
            self._engine = engines.build(name, self._model, precision)

    def inputs(self, cohort: Cohort, cache: Path | None = None) -> Cohort:
        """``cohort`` with what the trained layers take in the place of its images."""
        if self._backbone is None:
            return cohort
        return replace(cohort, images=self._backbone.features(cohort.images, cache))

    def ask(
        self,
        people: People,
        *,
        num_pairs: int,
        seed: int,
        done: Callable[[], None] = lambda: None,
    ) -> Answers:
        """What the model under audit and ``2 * num_pairs`` references say of ``people``.

        Args:
            people: as `inputs` returns them.
            num_pairs: of references; none need any.
            seed: decides the halves, and the references' draws and noise.
            done: called after each round of a reference.
        """
        models.load_trainable_weights(self._whole, self._released)
        losses = self._losses(people.cohort)
        rng = np.random.default_rng(derive_seed(seed, "halves"))
        references, absent = [], []
        for pair in range(num_pairs):
            half = self._half(people, rng)
            for number, chosen in enumerate((half, ~half)):
                self._train(people.only(chosen), derive_seed(seed, "reference", pair, number), done)
                references.append(self._losses(people.cohort))
                absent.append(~chosen[people.cohort.patients])
        shape = (2 * num_pairs, len(losses))
        return Answers(
            losses=losses,
            references=np.array(references).reshape(shape),
            absent=np.array(absent, dtype=bool).reshape(shape),
        )

    def seconds_each(self, people: People, clock: Callable[[], float]) -> float:
        """About how long one reference takes, by two steps of one; the first warms up.

        Args:
            people: as `inputs` returns them.
            clock: seconds that have passed.
        """
        cohort = people.only(self._half(people, np.random.default_rng(0)))
        one_step = replace(self._recipe, steps=1)
        self._begin()
        self._round(cohort, one_step, RoundSeeds(sampling=0, noise=0))
        began = clock()
        self._round(cohort, one_step, RoundSeeds(sampling=1, noise=1))
        of_step, began = clock() - began, clock()
        self._losses(people.cohort)
        return of_step * self._rounds * self._recipe.steps + clock() - began

    def _half(self, people: People, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(P,), half of the members and half of the others, so that halves are alike."""
        chosen = np.zeros(people.cohort.num_patients, dtype=bool)
        for group in (people.member, ~people.member):
            order = rng.permutation(np.flatnonzero(group))
            chosen[order[: len(order) // 2]] = True
        return chosen

    def _begin(self) -> None:
        """The model as it began, in the place of the one under audit."""
        models.load_trainable_weights(self._whole, self._first)

    def _train(self, cohort: Cohort, seed: int, done: Callable[[], None]) -> None:
        """A reference: the run's recipe and rounds, in one place."""
        self._begin()
        for number in range(self._rounds):
            seeds = RoundSeeds(
                sampling=derive_seed(seed, number, "sampling"),
                noise=derive_seed(seed, number, "noise"),
            )
            self._round(cohort, self._recipe, seeds)
            done()

    def _round(self, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
        trainee = Trainee(
            model=self._model,
            engine=self._engine,
            augmentation=self._augmentation,
            takes_features=self.takes_features,
        )
        train_round(trainee, units(cohort, recipe.unit), recipe, seeds)

    def _losses(self, cohort: Cohort) -> NDArray[np.float64]:
        """(N,) loss of each image as it is."""
        self._model.eval()
        found: list[Tensor] = []
        at_once = max(1, _VALUES_AT_ONCE // int(np.prod(cohort.images.shape[1:])))
        with torch.inference_mode():
            for start in range(0, len(cohort.labels), at_once):
                batch = torch.from_numpy(np.array(cohort.images[start : start + at_once]))
                if not self.takes_features:
                    batch = batch * 2.0 - 1.0
                labels = torch.from_numpy(cohort.labels[start : start + at_once])
                found.append(image_losses(self._model(batch).double(), labels))
        return torch.cat(found).numpy()
