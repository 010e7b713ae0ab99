"""Opacus's own engines, as references to measure and test ours against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from client.dp.clipping import Clipping
from client.dp.engine import Sums
from client.dp.loss import image_losses
from client.dp.patients import PatientBatch
from common.errors import UsageError


class OpacusEngine:
    """Opacus's hooks (or functorch for every layer): the gradient of each image is kept."""

    def __init__(self, model: nn.Module, *, functorch: bool) -> None:
        with _attaching():
            self._model = GradSampleModule(model, loss_reduction="sum", force_functorch=functorch)
        self._model.disable_hooks()  # a pass that is none of ours leaves nothing behind
        self._trainable = [p for p in model.parameters() if p.requires_grad]

    def clipped_sums(self, batch: PatientBatch, clipping: Clipping) -> Sums:
        """See `client.dp.engine.Engine`."""
        if clipping.kind == "per_layer":
            raise UsageError("privacy.clipping=per_layer: needs privacy.engine=bookkeeping")
        self._model.enable_hooks()
        losses = image_losses(self._model(batch.images), batch.labels)
        (losses * batch.image_weights()).sum().backward()
        self._model.disable_hooks()
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

    def clipped_sums(self, batch: PatientBatch, clipping: Clipping) -> Sums:
        """See `client.dp.engine.Engine`."""
        if clipping.kind == "per_layer" or batch.num_patients != len(batch.labels):
            raise UsageError(
                "privacy.engine=opacus_ghost: clips images; it needs privacy.clipping=flat or "
                "automatic, and one image of each patient in a step"
            )
        self._model.enable_hooks()
        losses = image_losses(self._model(batch.images), batch.labels)
        losses.sum().backward(retain_graph=True)
        norms = self._model.get_norm_sample()
        finite = torch.isfinite(norms)
        for parameter in self._trainable:
            parameter.grad = None
        self._model.disable_hooks()
        if not bool(finite.all()):  # zero times what is not finite would not be zero
            return self.clipped_sums(batch.only(finite), clipping) if bool(finite.any()) else ()
        (losses * clipping.factors(norms)).sum().backward()
        sums = [(p, p.grad) for p in self._trainable if p.grad is not None]
        for parameter in self._trainable:
            parameter.grad = None  # the next pass would add to it, unclipped
        return sums


@contextmanager
def _attaching() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"Opacus does not cover this model: {reason}") from error
