"""Patients drawn for a step, and the batches that hold their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from client import devices
from client.data.augmentation import Augmentation
from client.data.cohort import Cohort
from client.dp.patients import LargePatient, PatientBatch, Patients
from common.config import AugmentationConfig
from common.messages import Recipe


class PoissonDraws:
    """Draws patients by independent coins, and of each at most ``images_per_patient`` images."""

    def __init__(self, cohort: Cohort, recipe: Recipe, rng: np.random.Generator) -> None:
        self._images_of = _images_by_patient(cohort)
        self._recipe = recipe
        self._rng = rng

    def draw(self) -> list[NDArray[np.int64]]:
        """Rows of the images of one step, patient by patient."""
        coins = self._rng.random(len(self._images_of))
        drawn = np.flatnonzero(coins < self._recipe.sampling_rate)
        return [self._choose(self._images_of[p]) for p in drawn if len(self._images_of[p])]

    def _choose(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        limit = self._recipe.images_per_patient
        if len(images) <= limit:
            return images
        return self._rng.choice(images, size=limit, replace=False)


def _images_by_patient(cohort: Cohort) -> list[NDArray[np.int64]]:
    order = np.argsort(cohort.patients, kind="stable")
    bounds = np.searchsorted(cohort.patients[order], np.arange(cohort.num_patients + 1))
    return [order[bounds[p] : bounds[p + 1]] for p in range(cohort.num_patients)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """Makes batches of whole patients out of a cohort's images, where ``generator`` draws.

    Images in [0, 1] are changed at random and spread over [-1, 1]; features stay as they are.

    Guarantees:
        No batch has more than ``most_images`` images, views counted, whoever is drawn: else a
        round would run out of memory, for all to see, if a patient with many of them is.
    """

    cohort: Cohort
    augmentation: Augmentation
    views: int
    most_images: int
    generator: torch.Generator
    as_they_are: bool = False

    @classmethod
    def of(
        cls,
        cohort: Cohort,
        recipe: Recipe,
        augmentation: AugmentationConfig,
        most_images: int | None,
        seed: int,
        device: torch.device = devices.CPU,
    ) -> Loader:
        """As ``recipe`` says, within a site's own limit ``most_images`` if it has one."""
        return cls(
            cohort=cohort,
            augmentation=Augmentation(config=augmentation),
            views=recipe.augmentation_multiplicity,
            most_images=min(recipe.physical_batch, most_images or recipe.physical_batch),
            generator=devices.generator_on(device, seed),
        )

    def batches(self, chosen: list[NDArray[np.int64]]) -> Iterator[Patients]:
        """As many patients at a time as fit; who does not fit alone, to be taken in pieces."""
        group: list[NDArray[np.int64]] = []
        for images in chosen:
            if group and (sum(map(len, group)) + len(images)) * self.views > self.most_images:
                yield self._batch(group)
                group = []
            if len(images) * self.views > self.most_images:
                yield self._large(images)
            else:
                group.append(images)
        if group:
            yield self._batch(group)

    def _large(self, images: NDArray[np.int64]) -> LargePatient:
        one_view = replace(self, views=1)
        return LargePatient(
            rows=np.repeat(images, self.views),
            at_once=self.most_images,
            draw=lambda rows: one_view._batch([rows]),
        )

    def _batch(self, group: list[NDArray[np.int64]]) -> PatientBatch:
        rows = np.concatenate(group)
        patients = np.repeat(np.arange(len(group)), [len(images) for images in group])
        batch = PatientBatch(
            images=torch.from_numpy(np.ascontiguousarray(self.cohort.images[rows])),
            labels=torch.from_numpy(self.cohort.labels[rows]).repeat_interleave(self.views, 0),
            patients=torch.from_numpy(patients).repeat_interleave(self.views),
            num_patients=len(group),
        ).to(self.generator.device)
        if self.as_they_are:
            return batch
        views = self.augmentation.views(batch.images, self.views, self.generator)
        return replace(batch, images=views * 2.0 - 1.0)
