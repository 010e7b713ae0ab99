"""One optimiser step's gradient, with or without privacy, behind one small interface.

The clipped object is the *patient*: gradients of all images of one patient in a step are
averaged first, then clipped. The sum over patients is divided by the *expected* number of
patients (sampling rate x cohort size, both public), never by the number drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _generate_noise
from torch import Tensor, nn
from torch.optim import Optimizer

from client.dp.clipping import Clipping
from client.dp.engine import Engine, Sums
from client.dp.loss import ImageLosses, add_gradients, image_losses
from client.dp.noise import SystemNoise
from client.dp.patients import Patients
from common.config import Precision


class StepGradient(Protocol):
    """Takes one optimiser step from the batches of one logical step."""

    def step(self, batches: Iterable[Patients]) -> None:
        """Use every batch, then update the weights once. No batch at all is a step as well."""
        ...


class PlainStep:
    """A step without privacy: the mean of patients' mean gradients, nothing clipped or added."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        expected_patients: float,
        precision: Precision = Precision.fp32,
        losses_of: ImageLosses = image_losses,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._expected_patients = expected_patients
        self._precision = precision
        self._losses_of = losses_of

    def step(self, batches: Iterable[Patients]) -> None:
        """See `StepGradient`; without a batch the gradient is zero."""
        self._optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            add_gradients(
                self._model,
                batch,
                self._precision,
                self._losses_of,
                divisor=self._expected_patients,
            )
        for parameter in self._model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()


class PatientOptimizer(DPOptimizer):
    """Opacus's optimiser, fed with sums of clipped patient gradients.

    The noise is Opacus's own, from its ``generator``; where ``system_noise`` is set, it is that.

    Guarantees:
        One patient changes the sum before noise by at most ``max_grad_norm``; the noise has
        standard deviation ``noise_multiplier * max_grad_norm`` and is added once a step.
    """

    system_noise: SystemNoise | None = None

    def begin(self) -> None:
        """Forget everything of the last step."""
        for parameter in self.params:
            parameter.grad = None
            _set_sum(parameter, None)

    def add(self, sums: Sums) -> None:
        """Add sums of clipped gradients."""
        for parameter, gradient in sums:
            known = _sum_of(parameter)
            _set_sum(parameter, gradient if known is None else known.add_(gradient))

    def release(self) -> None:
        """Add the noise, divide by the expected number of patients, update the weights.

        Every weight gets noise, whether it got a gradient or not.
        """
        expected = self.expected_batch_size
        assert expected is not None
        for parameter in self.params:
            total = _sum_of(parameter)
            noisy = self._noisy(torch.zeros_like(parameter) if total is None else total)
            parameter.grad = noisy.div_(expected)
            _set_sum(parameter, None)
        self.original_optimizer.step()

    def _noisy(self, total: Tensor) -> Tensor:
        std = self.noise_multiplier * self.max_grad_norm
        if self.system_noise is not None:
            return self.system_noise.added_to(total, std)
        return _generate_noise(std, total, self.generator, self.secure_mode).add_(total)


def _sum_of(parameter: nn.Parameter) -> Tensor | None:
    """Where Opacus keeps a weight's sum of clipped gradients."""
    return getattr(parameter, "summed_grad", None)


def _set_sum(parameter: nn.Parameter, total: Tensor | None) -> None:
    parameter.summed_grad = total  # pyright: ignore[reportAttributeAccessIssue]


class PrivateStep:
    """A step of patient-level DP-SGD (Abadi et al. 2016, arXiv 1607.00133)."""

    def __init__(self, engine: Engine, clipping: Clipping, optimizer: PatientOptimizer) -> None:
        if clipping.max_grad_norm != optimizer.max_grad_norm:
            raise ValueError("clipping and noise must agree on max_grad_norm")
        self._engine = engine
        self._clipping = clipping
        self._optimizer = optimizer

    def step(self, batches: Iterable[Patients]) -> None:
        """See `StepGradient`; without a batch the step is noise alone."""
        self._optimizer.begin()
        for batch in batches:
            self._optimizer.add(self._engine.clipped_sums(batch, self._clipping))
        self._optimizer.release()
