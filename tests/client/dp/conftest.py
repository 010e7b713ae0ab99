"""Batches of patients, and the truth that engines are measured against: one pass for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.dp.bookkeeping import Bookkeeper
from client.dp.loss import patient_loss
from client.dp.patients import LargePatient, PatientBatch

Gradients = dict[str, Tensor]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _batch(
    counts: Sequence[int],
    shape: tuple[int, ...] = (1, 8, 8),
    *,
    seed: int = 0,
    num_outputs: int = 2,
    dtype: torch.dtype = torch.float32,
) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    num_images = sum(counts)
    return PatientBatch(
        images=torch.randn(num_images, *shape, generator=generator, dtype=dtype),
        labels=torch.randint(0, num_outputs, (num_images,), generator=generator),
        patients=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts))),
        num_patients=len(counts),
    )


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Ordinary autograd, one patient at a time."""

    def gradients(self, model: nn.Module, batch: PatientBatch) -> list[Gradients]:
        """Each patient's mean gradient of every trainable weight; zero where there is none."""
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found: list[Gradients] = []
        for patient in range(batch.num_patients):
            loss = patient_loss(model, batch.only(torch.arange(batch.num_patients) == patient))
            parts = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
            found.append(
                {
                    name: torch.zeros_like(p) if g is None else g
                    for (name, p), g in zip(trainable.items(), parts, strict=True)
                }
            )
        return found

    def norms(self, model: nn.Module, batch: PatientBatch) -> Tensor:
        """(P,) norm of each patient's gradient."""
        return torch.stack([_norm(each) for each in self.gradients(model, batch)])

    def clipped_sum(self, model: nn.Module, batch: PatientBatch, clip: float) -> Gradients:
        """The definition of flat clipping."""
        each = self.gradients(model, batch)
        factors = [min(1.0, clip / float(_norm(gradients))) for gradients in each]
        return {
            name: sum((f * g[name] for f, g in zip(factors, each, strict=True)), torch.zeros(()))
            for name in each[0]
        }

    def assert_recorded(self, model: nn.Module, batch: PatientBatch) -> None:
        """A recorded pass gives every patient's gradients and norms to 1e-4, for every weight."""
        expected = self.gradients(model, batch)
        names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        with Bookkeeper(model).recording(batch) as recording:
            patient_loss(model, batch).backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        for patient, gradients in enumerate(expected):
            norm = float(_norm(gradients))
            assert norm > 0
            mine = (torch.arange(batch.num_patients) == patient).to(batch.images.dtype)
            found = {names[p]: tape.weighted_sum(mine) for p, tape in recording.tapes.items()}
            assert not any(gradient.requires_grad for gradient in found.values())
            squared = sum(float(t.squared_norms[patient]) for t in recording.tapes.values())
            assert squared**0.5 == pytest.approx(norm, rel=1e-4)
            for name, want in gradients.items():
                # single weights may be zero in truth, such as a key's bias under softmax
                scale = max(float(want.norm()), 1e-3 * norm)
                got = found.pop(name, torch.zeros_like(want))
                assert got.shape == want.shape
                assert float((got - want).norm()) <= 1e-4 * scale, name
            assert not found


def _norm(gradients: Gradients) -> Tensor:
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., PatientBatch]:
    """Makes batches of patients with so many images each."""
    return _batch


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """What is right."""
    return Oracle()


def _stirred(model: nn.Module, scale: float = 0.05) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def stirred() -> Callable[..., nn.Module]:
    """Moves every weight a little, so that those that start at zero matter."""
    return _stirred


def _in_pieces(batch: PatientBatch, at_once: int) -> LargePatient:
    assert batch.num_patients == 1

    def draw(rows: np.ndarray) -> PatientBatch:
        index = torch.from_numpy(rows)
        return replace(
            batch,
            images=batch.images[index],
            labels=batch.labels[index],
            patients=batch.patients[index],
        )

    return LargePatient(rows=np.arange(len(batch.labels)), at_once=at_once, draw=draw)


@pytest.fixture(scope="session")
def in_pieces() -> Callable[[PatientBatch, int], LargePatient]:
    """Makes pieces of so many images of the one patient of a batch."""
    return _in_pieces
