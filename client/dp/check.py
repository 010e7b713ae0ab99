"""An engine is tried on made-up patients before it meets real ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from client import devices
from client.dp.clipping import Clipping
from client.dp.engine import Engine, Sums
from client.dp.loss import image_losses, patient_loss
from client.dp.patients import PatientBatch
from common.errors import UsageError

_TOLERANCE = 1e-3

# What an engine runs into where a model's shapes or calls are not what it expects.
_UNEXPECTED = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def check_engine(model: nn.Module, engine: Engine, batch: PatientBatch) -> None:
    """Compare two patients' clipped gradients with plain autograd, for every weight.

    A model may mix images, or use its weights in a way that the engine does not see, without any
    error. Two sums are compared, one in which both patients are clipped and one in which neither
    is: together they fix both gradients and both norms. Then the model is asked, as in training,
    whether one patient's loss depends on the other's images.

    Args:
        model: whose trainable weights the engine knows.
        engine: to be tried.
        batch: made-up images of two patients.

    Raises:
        UsageError: if a sum differs by more than 0.1 %, or the pass fails.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        # random layers would differ between the two passes, and Opacus ignores layers in eval
        module.training = any(p.requires_grad for p in module.parameters(recurse=False))
    try:
        _compare(model, engine, batch)
        model.train()
        _refuse_mixing(model, batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in model.parameters():
            parameter.grad = None


def made_up_batch(
    image_shape: tuple[int, ...], *, num_outputs: int, multilabel: bool, one_image_each: bool
) -> PatientBatch:
    """Noise instead of images: of two patients, with two and three images if allowed.

    So alike that an engine takes both in one pass, and different enough to need padding.
    """
    generator = torch.Generator().manual_seed(0)
    patients = torch.tensor([0, 1] if one_image_each else [0, 0, 1, 1, 1])
    labels = torch.arange(len(patients)) % num_outputs
    if multilabel:
        labels = (torch.arange(len(patients) * num_outputs) % 3 - 1).view(-1, num_outputs)
        labels[:, 0] = torch.arange(len(patients)) % 2  # something is known of every image
    return PatientBatch(
        images=torch.rand((len(patients), *image_shape), generator=generator),
        labels=labels,
        patients=patients,
        num_patients=2,
    )


def _compare(model: nn.Module, engine: Engine, batch: PatientBatch) -> None:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    alone = [_autograd(model, _only(batch, patient), trainable) for patient in range(2)]
    norms = [float(torch.stack([g.norm() for g in each.values()]).norm()) for each in alone]
    for max_grad_norm in (min(norms) / 2, 10 * max(norms)):
        factors = [min(1.0, max_grad_norm / norm) for norm in norms]
        clipping = Clipping(kind="flat", max_grad_norm=max_grad_norm)
        found = dict(_attempt(engine, batch, clipping))
        for name, parameter in trainable.items():
            want = factors[0] * alone[0][name] + factors[1] * alone[1][name]
            got = found.get(parameter, torch.zeros_like(parameter))
            least = _TOLERANCE * sum(f * n for f, n in zip(factors, norms, strict=True))
            if not float((got - want).norm()) <= _TOLERANCE * max(float(want.norm()), least):
                raise UsageError(
                    f"private training does not cover {name}: its per-patient gradient differs "
                    "from autograd's; train less of the model or choose another"
                )


def _refuse_mixing(model: nn.Module, batch: PatientBatch) -> None:
    """Layers may mix images while training only, and without weights, as batch norms do."""
    first = batch.patients == 0
    others = batch.images.clone()
    others[~first] = 1.0 - others[~first]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    losses: list[Tensor] = []
    with torch.no_grad():
        for images in (batch.images, others):
            with devices.drawing(batch.images.device, 0):  # the same dropout twice
                losses.append(image_losses(model(images), batch.labels)[first])
        for buffer, before in buffers:
            buffer.copy_(before)
    if not torch.allclose(*losses, rtol=_TOLERANCE):
        raise UsageError(
            "private training does not cover this model: while training it mixes the images of a "
            "batch, as BatchNorm does; choose another"
        )


def _attempt(engine: Engine, batch: PatientBatch, clipping: Clipping) -> Sums:
    try:
        return engine.clipped_sums(batch, clipping)
    except _UNEXPECTED as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"private training does not cover this model: {reason}") from error


def _only(batch: PatientBatch, patient: int) -> PatientBatch:
    everyone = torch.arange(batch.num_patients, device=batch.patients.device)
    return batch.only(everyone == patient)


def _autograd(
    model: nn.Module, batch: PatientBatch, trainable: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """One patient's mean gradient, weight by weight."""
    loss = patient_loss(model, batch)
    gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True)
    }
