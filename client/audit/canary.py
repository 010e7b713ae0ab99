"""Canaries: patients whose gradient is as bad as any patient's can be, and easy to look for.

Nothing that a patient's images could be moves a model further than a gradient longer than the
clipping norm, and nothing is easier to see than one that lies along a weight that nobody else
moves (a Dirac canary: Nasr et al. 2023, "Tight Auditing of Differentially Private Machine
Learning", arXiv 2302.07956). The model under audit gets one more weight for each canary. A canary's
images go through the whole model as every patient's do; only their loss is another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.dp.loss import image_losses

# Far above any clipping norm in use, and exact in bf16.
_LENGTH = 2.0**20


class CanaryModel(nn.Module):
    """A model, and beside its logits the weights of the canaries.

    Args:
        inner: makes logits (B, C) of images; none where the mechanism is audited without a model.
        deck: of the canaries.
    """

    def __init__(self, inner: nn.Module | None, deck: Deck) -> None:
        super().__init__()
        self._deck = deck
        self.inner = inner
        self.canaries = nn.Linear(1, deck.num_canaries, bias=False)
        nn.init.zeros_(self.canaries.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C + K) logits and, the same for each image, the weights of the K canaries."""
        ones = images.new_ones((len(images), 1))
        if self.inner is None:
            logits = images.new_zeros((len(images), self._deck.num_classes))
        else:
            logits = self.inner(images)
        return torch.cat([logits, self.canaries(ones).to(logits.dtype)], 1)

    def get_classifier(self) -> nn.Module:
        """The head of the model under audit, as timm calls it; nothing where it has none."""
        return getattr(self.inner, "get_classifier", nn.Identity)()


@dataclass(frozen=True, kw_only=True, slots=True)
class Deck:
    """Who is in a cohort under audit (all of it made up).

    Attributes:
        num_classes: C, of the model's own labels.
        num_canaries: K; each one is there, or is replaced by nothing.
        num_ordinary: patients with random images and ordinary labels, always there.
        opposed: whether a patient is there whose gradient points away from the first canary's, half
            as long. Clipping patient by patient makes both equally long, so that it is no help to
            an attacker who knows it; where patients are clipped together it turns the sum around.
        images_each: of every patient.
        image_shape: channels first.
    """

    num_classes: int
    num_canaries: int
    num_ordinary: int
    opposed: bool
    images_each: int
    image_shape: tuple[int, ...]

    @property
    def num_patients(self) -> int:
        """All places in the cohort, those of absent canaries included."""
        return self.num_canaries + self.num_ordinary + self.opposed

    def cohort(self, present: NDArray[np.bool_], seed: int, *, blank: bool = False) -> Cohort:
        """A cohort with the canaries of ``present`` (K,).

        Args:
            present: which canaries are there.
            seed: of the ordinary patients.
            blank: an absent canary has images whose gradient is zero, instead of none.
        """
        rng = np.random.default_rng(seed)
        labels = np.concatenate(
            [
                np.where(present, self.num_classes + np.arange(self.num_canaries), self._blank),
                np.full(int(self.opposed), self._opponent),
                rng.integers(0, self.num_classes, self.num_ordinary),
            ]
        )
        there = np.flatnonzero((labels != self._blank) | blank)
        patients = np.repeat(there, self.images_each)
        return Cohort(
            images=rng.random((len(patients), *self.image_shape), dtype=np.float32),
            labels=labels[patients].astype(np.int64),
            patients=patients,
            num_patients=self.num_patients,
            patient_ids=tuple(f"made-up-{number}" for number in range(self.num_patients)),
        )

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(n,) loss of each image, from outputs (n, C + K) of a `CanaryModel`.

        A canary's is a multiple of its own weight, so that its gradient never changes.
        """
        ordinary = labels < self.num_classes
        classes = torch.where(ordinary, labels, 0)
        own = torch.where(ordinary | (labels >= self._opponent), self.num_classes, labels)
        along = outputs.gather(1, own[:, None])[:, 0]
        length = torch.where(labels == self._opponent, -_LENGTH / 2, _LENGTH)
        length = torch.where(labels == self._blank, 0.0, length)
        usual = image_losses(outputs[:, : self.num_classes], classes)
        return torch.where(ordinary, usual, along * length.to(along.dtype))

    @property
    def _opponent(self) -> int:
        return self.num_classes + self.num_canaries

    @property
    def _blank(self) -> int:
        return self._opponent + 1
