"""Opacus's own engines, as references to measure and test ours against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine, Sums
from client.dp.loss import image_losses
from client.dp.patients import LargePatient, Patients
from common.errors import UsageError

_Hooked = GradSampleModule | GradSampleModuleFastGradientClipping


class OpacusEngine:
    """Opacus's hooks (or functorch for every layer): the gradient of each image is kept.

    Not of a patient in pieces: that one's gradient is plain autograd's.
    """

    def __init__(self, model: nn.Module, *, functorch: bool) -> None:
        with _attaching():
            self._model = GradSampleModule(model, loss_reduction="sum", force_functorch=functorch)
        self._model.disable_hooks()  # a pass that is none of ours leaves nothing behind
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._alone = BookkeepingEngine(model)

    def clipped_sums(self, batch: Patients, clipping: Clipping) -> Sums:
        """See `client.dp.engine.Engine`."""
        if clipping.kind == "per_layer":
            raise UsageError("privacy.clipping=per_layer: needs privacy.engine=bookkeeping")
        if isinstance(batch, LargePatient):
            return self._alone.clipped_sums(batch, clipping)
        with _hooked(self._model):
            losses = image_losses(self._model(batch.images), batch.labels)
            (losses * batch.image_weights()).sum().backward()
        gradients = {p: batch.fold(self._taken(p, len(batch.labels))) for p in self._trainable}
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        finite = torch.isfinite(norms)
        factors = clipping.factors(torch.where(finite, norms, 0.0))
        return [
            (p, torch.tensordot(factors[finite], g[finite], dims=1)) for p, g in gradients.items()
        ]

    @staticmethod
    def _taken(parameter: nn.Parameter, num_images: int) -> Tensor:
        gradient = cast("Tensor | None", getattr(parameter, "grad_sample", None))
        parameter.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
        parameter.grad = None
        if gradient is None or len(gradient) != num_images:
            raise UsageError("Opacus does not give a gradient by image for every weight")
        return gradient


class OpacusGhostEngine:
    """Opacus's ghost clipping: norms first, then a second backward pass of weighted losses."""

    def __init__(self, model: nn.Module) -> None:
        with _attaching():
            self._model = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")
        self._model.disable_hooks()  # a pass that is none of ours leaves nothing behind
        self._trainable = [p for p in model.parameters() if p.requires_grad]

    def clipped_sums(self, batch: Patients, clipping: Clipping) -> Sums:
        """See `client.dp.engine.Engine`."""
        if (
            clipping.kind == "per_layer"
            or isinstance(batch, LargePatient)
            or batch.num_patients != len(batch.labels)
        ):
            raise UsageError(
                "privacy.engine=opacus_ghost: clips images; it needs privacy.clipping=flat or "
                "automatic, and one image of each patient in a step"
            )
        with _hooked(self._model):
            losses = image_losses(self._model(batch.images), batch.labels)
            losses.sum().backward(retain_graph=True)
        norms = self._model.get_norm_sample()
        finite = torch.isfinite(norms)
        for parameter in self._trainable:
            parameter.grad = None
        if not bool(finite.all()):  # zero times what is not finite would not be zero
            return self.clipped_sums(batch.only(finite), clipping) if bool(finite.any()) else ()
        (losses * clipping.factors(norms)).sum().backward()
        sums = [(p, p.grad) for p in self._trainable if p.grad is not None]
        for parameter in self._trainable:
            parameter.grad = None  # the next pass would add to it, unclipped
        return sums


@contextmanager
def _hooked(model: _Hooked) -> Iterator[None]:
    """Opacus follows the pass inside; one that fails leaves nothing to the next."""
    model.enable_hooks()
    try:
        yield
    except BaseException:
        _forget(model)
        raise
    finally:
        model.disable_hooks()


def _forget(model: _Hooked) -> None:
    """Drop what Opacus keeps in layers and weights between a pass forward and the one back."""
    for module in model.modules():
        vars(module).pop("activations", None)
        vars(module).pop("max_batch_len", None)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = None
            vars(parameter).pop("_current_grad_sample", None)
            vars(parameter).update(grad_sample=None, _forward_counter=0)


@contextmanager
def _attaching() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"Opacus does not cover this model: {reason}") from error
