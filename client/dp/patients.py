"""Images in a batch, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
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
