"""Images in a batch, and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client import devices


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatientBatch:
    """Images of whole patients (private).

    Attributes:
        images: (n, 1, S, S) float32.
        labels: (n,) int64.
        patients: (n,) int64, index of each image's patient within this batch, 0..P-1, ascending.
        num_patients: P.
    """

    images: Tensor
    labels: Tensor
    patients: Tensor
    num_patients: int

    def __post_init__(self) -> None:
        counts = torch.bincount(self.patients, minlength=self.num_patients)
        whole = len(counts) == self.num_patients and bool((counts > 0).all())
        if not whole or bool((self.patients.diff() < 0).any()):
            raise ValueError("patients: must ascend, and each patient must have an image")

    def to(self, device: torch.device) -> PatientBatch:
        """The same on another device."""
        return replace(
            self,
            images=devices.moved(self.images, device),
            labels=devices.moved(self.labels, device),
            patients=devices.moved(self.patients, device),
        )

    def image_weights(self) -> Tensor:
        """(n,) one over the number of images of the same patient."""
        counts = torch.bincount(self.patients, minlength=self.num_patients)
        return 1.0 / counts[self.patients].to(self.images.dtype)

    def pieces(self) -> Iterator[tuple[PatientBatch, float]]:
        """The batch, which is held whole; see `LargePatient.pieces`."""
        yield self, 1.0

    def changed(self, change: Callable[[PatientBatch], PatientBatch]) -> PatientBatch:
        """As ``change`` makes it; see `LargePatient.changed`."""
        return change(self)

    def alike(self) -> Iterator[PatientBatch]:
        """The same patients, in batches where none has twice as many images as another.

        Patients side by side are padded to the largest of them.
        """
        counts = torch.bincount(self.patients, minlength=self.num_patients)
        doublings = counts.log2().floor()
        for doubling in doublings.unique():
            chosen = doublings == doubling
            yield self if bool(chosen.all()) else self.only(chosen)

    def parts(self, num_patients: int) -> Iterator[PatientBatch]:
        """The same patients in batches of at most ``num_patients``."""
        if self.num_patients <= num_patients:
            yield self
            return
        for first in range(0, self.num_patients, num_patients):
            index = torch.arange(self.num_patients, device=self.patients.device)
            yield self.only((index >= first) & (index < first + num_patients))

    def only(self, patients: Tensor) -> PatientBatch:
        """The batch of the patients marked in ``patients`` (P,) bool."""
        images = patients[self.patients]
        renumbered = torch.cumsum(patients, 0) - 1
        return PatientBatch(
            images=self.images[images],
            labels=self.labels[images],
            patients=renumbered[self.patients[images]],
            num_patients=int(patients.sum()),
        )

    def fold(self, values: Tensor) -> Tensor:
        """Sum over the images of each patient: (n, ...) → (P, ...)."""
        if self.num_patients == values.shape[0]:
            return values
        sums = values.new_zeros((self.num_patients, *values.shape[1:]))
        return sums.index_add_(0, self.patients, values)

    def gather(self, values: Tensor) -> Tensor:
        """Put the images of a patient side by side: (n, T, d) → (P, K T, d), padded with zeros.

        K is the largest number of images of a patient in the batch.
        """
        if self.num_patients == values.shape[0]:
            return values
        counts = torch.bincount(self.patients, minlength=self.num_patients)
        if bool((counts == counts[0]).all()):
            return values.unflatten(0, (self.num_patients, -1)).flatten(1, 2)
        starts = torch.cumsum(counts, 0) - counts
        slot = torch.arange(len(values), device=values.device) - starts[self.patients]
        side = values.new_zeros((self.num_patients, int(counts.max()), *values.shape[1:]))
        side[self.patients, slot] = values
        return side.flatten(1, 2)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LargePatient:
    """One patient with more images than are held at once (private).

    Attributes:
        rows: (n,) where the patient's images are; each as often as it has views.
        at_once: so many are held.
        draw: makes a batch of the patient alone from some of ``rows``; what is random about it
            is drawn anew each time.
    """

    rows: NDArray[np.int64]
    at_once: int
    draw: Callable[[NDArray[np.int64]], PatientBatch]

    def pieces(self) -> Iterator[tuple[PatientBatch, float]]:
        """Batches that hold the images in turn, and the share of each in all of them."""
        for start in range(0, len(self.rows), self.at_once):
            rows = self.rows[start : start + self.at_once]
            yield self.draw(rows), len(rows) / len(self.rows)

    def changed(self, change: Callable[[PatientBatch], PatientBatch]) -> LargePatient:
        """With each piece as ``change`` makes it."""
        return replace(self, draw=lambda rows: change(self.draw(rows)))

    def parts(self, num_patients: int) -> Iterator[LargePatient]:
        """The patient, who is one."""
        del num_patients
        yield self


# What a step is made of.
Patients = PatientBatch | LargePatient
