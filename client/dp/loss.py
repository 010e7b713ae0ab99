"""What training makes small."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.dp.patients import PatientBatch, Patients
from client.dp.weight import Weight
from common.config import Precision
from common.errors import UsageError

# (n,) loss of each image, from the model's output and the labels.
ImageLosses = Callable[[Tensor, Tensor], Tensor]


def image_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) loss of each image.

    Args:
        logits: (n, C).
        labels: (n,) a class number, or (n, C) 0 or 1 for each of C findings, -1 where unknown.
            Unknown ones count as zero and the sum is divided by C, so that what is known of one
            image never changes the weight of another.
    """
    if labels.dim() == 1:
        return functional.cross_entropy(logits, labels, reduction="none")
    known = labels >= 0
    target = torch.where(known, labels, 0).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(known, losses, 0.0).mean(1)


def patient_loss(
    model: nn.Module,
    batch: PatientBatch,
    precision: Precision = Precision.fp32,
    losses_of: ImageLosses = image_losses,
) -> Tensor:
    """Sum over patients of the mean loss of their images.

    Raises:
        UsageError: if the model's output is not by image.
    """
    half = precision is Precision.bf16
    with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=half):
        logits = cast("Tensor", model(batch.images))
    if isinstance(logits, Weight) or len(logits) != len(batch.labels):
        raise UsageError("private training does not cover this model: its output is not by image")
    losses = losses_of(logits.float() if half else logits, batch.labels)
    return (losses * batch.image_weights()).sum()


def add_gradients(
    model: nn.Module,
    patients: Patients,
    precision: Precision = Precision.fp32,
    losses_of: ImageLosses = image_losses,
    *,
    divisor: float = 1.0,
) -> None:
    """Add to the weights' gradients those of `patient_loss`, divided; piece by piece if need be.

    Raises:
        UsageError: if the model's output is not by image.
    """
    for piece, share in patients.pieces():
        loss = patient_loss(model, piece, precision, losses_of)
        (loss * share / divisor).backward()
