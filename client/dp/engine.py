"""What computes the sum of clipped patient gradients; ours, by book-keeping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from client.dp.bookkeeping import Bookkeeper
from client.dp.clipping import Clipping
from client.dp.loss import ImageLosses, add_gradients, image_losses
from client.dp.patients import LargePatient, Patients
from client.dp.tapes import Tape
from common.config import Precision

# Gradients of so many patients, one layer's at a time, stay in a processor's cache.
_AT_ONCE = 16

Sums = Iterable[tuple[nn.Parameter, Tensor]]


class Engine(Protocol):
    """Knows a model; clips the gradients of its trainable weights by patient."""

    def clipped_sums(self, batch: Patients, clipping: Clipping) -> Sums:
        """Sum over patients of their clipped mean gradients, by weight.

        A patient whose gradient is not finite counts as zero: it would otherwise make the released
        weights NaN, and with that be seen. Who comes in pieces is clipped once, as if held whole.

        Raises:
            UsageError: if the engine does not cover the model, the batch or the clipping.
        """
        ...


class BookkeepingEngine:
    """Our own: exact, with one backward pass and without gradients of single patients.

    By layer, each layer is clipped as soon as the backward pass has left it, and nothing of it is
    kept.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision = Precision.fp32,
        losses_of: ImageLosses = image_losses,
    ) -> None:
        self._model = model
        self._precision = precision
        self._losses_of = losses_of
        self._keeper = Bookkeeper(model)

    def clipped_sums(self, batch: Patients, clipping: Clipping) -> Sums:
        """See `Engine`."""
        by_layer = clipping.kind == "per_layer"
        if by_layer:
            clipping = clipping.of_one_layer(self._keeper.num_layers)
        sums: dict[nn.Parameter, Tensor] = {}

        def take(tapes: Mapping[nn.Parameter, Tape]) -> None:
            for parameter, total in clipped(tapes, clipping):
                known = sums.get(parameter)
                sums[parameter] = total if known is None else known.add_(total)

        for part in _parts(batch, by_layer=by_layer):
            with self._keeper.recording(part, take if by_layer else None) as recording:
                add_gradients(self._model, part, self._precision, self._losses_of)
            take(recording.tapes)
        return sums.items()


def _parts(batch: Patients, *, by_layer: bool) -> Iterator[Patients]:
    """Patients with alike numbers of images, as many at a time as is best."""
    if isinstance(batch, LargePatient):
        yield batch
        return
    on_cpu = batch.images.device.type == "cpu"
    for alike in batch.alike():
        yield from alike.parts(_AT_ONCE if by_layer and on_cpu else alike.num_patients)


def clipped(tapes: Mapping[nn.Parameter, Tape], clipping: Clipping) -> Sums:
    """Sums of gradients, clipped by their norm over all of ``tapes``."""
    if not tapes:
        return ()
    norms = total_norms(tapes)
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        for tape in tapes.values():
            tape.erase(~finite)
        norms = torch.where(finite, norms, 0.0)
    factors = clipping.factors(norms)
    return [(parameter, tape.weighted_sum(factors)) for parameter, tape in tapes.items()]


def total_norms(tapes: Mapping[nn.Parameter, Tape]) -> Tensor:
    """(P,) norm of each patient's gradient over all of ``tapes``."""
    return torch.stack([tape.squared_norms for tape in tapes.values()]).sum(0).sqrt()
