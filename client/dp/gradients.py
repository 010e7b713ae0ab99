"""One optimiser step's gradient, with or without privacy, behind one small interface.

The clipped object is the *patient*: gradients of all images of one patient in a step are
averaged first, then clipped. The sum over patients is divided by the *expected* number of
patients (sampling rate x cohort size, both public), never by the number drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from client.dp.bookkeeping import Bookkeeper
from client.dp.patients import PatientBatch
from common.errors import UsageError


class StepGradient(Protocol):
    """Takes one optimiser step from the batches of one logical step."""

    def step(self, batches: Iterable[PatientBatch]) -> None:
        """Use every batch, then update the weights once. No batch at all is a step as well."""
        ...


class PlainStep:
    """A step without privacy: the mean of patients' mean gradients, nothing clipped or added."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, expected_patients: float) -> None:
        self._model = model
        self._optimizer = optimizer
        self._expected_patients = expected_patients

    def step(self, batches: Iterable[PatientBatch]) -> None:
        """See `StepGradient`; without a batch the gradient is zero."""
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for batch in batches:
            losses = functional.cross_entropy(
                self._model(batch.images), batch.labels, reduction="none"
            )
            ((losses * batch.image_weights()).sum() / self._expected_patients).backward()
        self._optimizer.step()


class PatientOptimizer(DPOptimizer):
    """Opacus's optimiser, clipping patients instead of images.

    Guarantees:
        One patient changes the sum before noise by at most ``max_grad_norm``; the noise has
        standard deviation ``noise_multiplier * max_grad_norm`` and is added once a step.
    """

    @property
    def accumulated_iterations(self) -> int:
        """Always one: ``expected_batch_size`` counts the patients of the whole logical step."""
        return 1

    def begin(self) -> None:
        """Forget everything of the last step."""
        for parameter in self.params:
            parameter.grad = None
            parameter.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
            parameter.summed_grad = (  # pyright: ignore[reportAttributeAccessIssue]
                torch.zeros_like(parameter)
            )

    def add(self, sums: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        """Add sums of clipped gradients."""
        for parameter, gradient in sums:
            parameter.summed_grad += gradient  # pyright: ignore[reportAttributeAccessIssue]

    def release(self) -> None:
        """Add the noise, divide by the expected number of patients, update the weights."""
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()


class PrivateStep:
    """A step of patient-level DP-SGD (Abadi et al. 2016, arXiv 1607.00133)."""

    def __init__(self, model: nn.Module, keeper: Bookkeeper, optimizer: PatientOptimizer) -> None:
        self._model = model
        self._keeper = keeper
        self._optimizer = optimizer

    def step(self, batches: Iterable[PatientBatch]) -> None:
        """See `StepGradient`; without a batch the step is noise alone."""
        self._optimizer.begin()
        for batch in batches:
            self._optimizer.add(self._clipped_sums(batch))
        self._optimizer.release()

    def _clipped_sums(self, batch: PatientBatch) -> list[tuple[nn.Parameter, Tensor]]:
        """Sum of clipped patient gradients, by weight.

        A patient whose gradient is not finite counts as zero: it would otherwise make the
        released weights NaN, and with that be seen.
        """
        norms = backward(self._model, self._keeper, batch)
        finite = torch.isfinite(norms)
        if not bool(finite.any()):
            return []
        if not bool(finite.all()):
            return self._clipped_sums(batch.only(finite))
        factors = clip_factors(norms, self._optimizer.max_grad_norm)[batch.patients]
        with torch.no_grad():
            sums = [pair for tape in self._keeper.tapes() for pair in tape.weighted_sum(factors)]
        self._keeper.forget()
        return sums


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """(P,) min(1, C / norm): flat clipping."""
    return (max_grad_norm / (norms + 1e-6)).clamp(max=1.0)


def backward(model: nn.Module, keeper: Bookkeeper, batch: PatientBatch) -> Tensor:
    """Record one backward pass; returns the norm of each patient's mean gradient, (P,)."""
    with keeper.recording(len(batch.labels)):
        losses = functional.cross_entropy(model(batch.images), batch.labels, reduction="none")
        (losses * batch.image_weights()).sum().backward()
    with torch.no_grad():
        return torch.stack([t.squared_norms(batch) for t in keeper.tapes()]).sum(0).sqrt()


def check_engine(
    model: nn.Module, keeper: Bookkeeper, *, image_size: int, num_classes: int
) -> None:
    """Compare two made-up patients' gradients with plain autograd, for every weight.

    A layer may mix images, or use its weights in a way that the engine does not see, without any
    error; so a model is tried before it meets a patient.

    Raises:
        UsageError: if a gradient or a norm differs by more than 0.1 %, or the pass fails.
    """
    generator = torch.Generator().manual_seed(0)
    batch = PatientBatch(
        images=torch.rand((3, 1, image_size, image_size), generator=generator),
        labels=torch.arange(3) % num_classes,
        patients=torch.tensor([0, 0, 1]),
        num_patients=2,
    )
    was_training = model.training
    model.eval()  # random layers would differ between the two passes
    try:
        norms = backward(model, keeper, batch).detach()
    except RuntimeError as error:  # shapes that the engine does not expect
        raise UsageError(f"private training does not cover this model: {error}") from error
    tapes = keeper.tapes()
    keeper.forget()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for patient in range(batch.num_patients):
        factors = (batch.patients == patient).to(batch.images.dtype)
        with torch.no_grad():
            engine = {p: g for tape in tapes for p, g in tape.weighted_sum(factors)}
        expected = _autograd(model, batch.only(torch.arange(2) == patient), trainable)
        total = float(torch.stack([g.norm() for g in expected.values()]).norm())
        for name, parameter in trainable.items():
            got, want = engine.get(parameter, torch.zeros_like(parameter)), expected[name]
            if not float((got - want).norm()) <= 1e-3 * max(float(want.norm()), 1e-3 * total):
                raise UsageError(
                    f"private training does not cover {name}: its per-patient gradient differs "
                    "from autograd's; train less of the model or choose another"
                )
        if not abs(float(norms[patient]) - total) <= 1e-3 * total:
            raise UsageError(
                f"private training does not cover this model: a patient's gradient norm reads "
                f"{float(norms[patient]):.4g}, autograd's is {total:.4g}"
            )
    model.train(was_training)
    for parameter in model.parameters():
        parameter.grad = None


def _autograd(
    model: nn.Module, batch: PatientBatch, trainable: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """One patient's mean gradient, weight by weight."""
    loss = functional.cross_entropy(model(batch.images), batch.labels)
    gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True)
    }
