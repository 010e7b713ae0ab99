"""Losses: what is unknown of one image never changes another's weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from client.dp.bookkeeping import Bookkeeper
from client.dp.loss import image_losses, patient_loss
from client.dp.patients import PatientBatch
from common.config import Precision
from common.errors import UsageError


def test_classes_have_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    losses = image_losses(logits, labels)
    assert losses.shape == (5,)
    assert float(losses.mean()) == pytest.approx(float(functional.cross_entropy(logits, labels)))


def test_unknown_findings_count_as_zero_and_the_divisor_stays() -> None:
    logits = torch.zeros(3, 4)
    labels = torch.tensor([[1, 0, 1, 0], [1, -1, -1, -1], [-1, -1, -1, -1]])
    losses = image_losses(logits, labels)
    half = float(torch.tensor(2.0).log())
    assert losses.tolist() == pytest.approx([half, half / 4, 0.0])
    logits.requires_grad_()
    image_losses(logits, labels).sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad[labels < 0] == 0).all())
    assert bool((logits.grad[labels >= 0] != 0).all())


def test_a_patients_images_weigh_one_together(make_batch: Any) -> None:
    model, batch = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), make_batch([1, 3])
    losses = image_losses(model(batch.images), batch.labels)
    want = losses[0] + losses[1:].mean()
    assert float(patient_loss(model, batch).detach()) == pytest.approx(
        float(want.detach()), rel=1e-6
    )


def test_losses_of_a_half_precision_pass_are_taken_in_full(make_batch: Any) -> None:
    seen: list[torch.dtype] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model[1].register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    loss = patient_loss(model, make_batch([1, 3]), Precision.bf16)
    assert (seen, loss.dtype) == ([torch.bfloat16], torch.float32)


class Constant(nn.Module):
    def __init__(self, *, by_image: bool) -> None:
        super().__init__()
        self.by_image = by_image
        self.answer = nn.Parameter(torch.randn(3, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).mean(0)[:4].view(2, 2) if self.by_image else self.answer


@pytest.mark.parametrize("by_image", [False, True])
def test_an_output_that_is_not_by_image_is_refused(make_batch: Any, by_image: bool) -> None:
    model, batch = Constant(by_image=by_image), make_batch([1, 2])
    with (
        pytest.raises(UsageError, match="its output is not by image"),
        Bookkeeper(model).recording(batch),
    ):
        patient_loss(model, batch)


def test_multilabel_batches_reach_the_loss(make_batch: Any) -> None:
    batch = make_batch([2, 1])
    labels = torch.tensor([[1, 0], [0, -1], [-1, 1]])
    many = PatientBatch(images=batch.images, labels=labels, patients=batch.patients, num_patients=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    losses = image_losses(model(many.images), labels)
    want = losses[:2].mean() + losses[2]
    assert float(patient_loss(model, many).detach()) == pytest.approx(
        float(want.detach()), rel=1e-6
    )
