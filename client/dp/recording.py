"""One recorded pass of a model over a batch: what each weight needs, collected by patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.dp.patients import PatientBatch
from client.dp.scratch import Scratch
from client.dp.tapes import KeptTape, Tape, product_tape
from common.errors import UsageError

# Takes the tapes of one layer as soon as all of them are complete.
OnLayer = Callable[[Mapping[nn.Parameter, Tape]], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """What a model's weights are called (public).

    Attributes:
        names: of trainable weights.
        layers: for each trainable weight, all trainable weights of its module.
        buffers: the model's buffers by ``id``: constants, never part of a batch. They are held, so
            that no other tensor can get their ``id``.
    """

    names: Mapping[nn.Parameter, str]
    layers: Mapping[nn.Parameter, tuple[nn.Parameter, ...]]
    buffers: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Meeting:
    """Where something computed from weights alone met the batch.

    Attributes:
        value: what met the batch, with its graph down to ``leaves``.
        leaves: stand-ins of the weights it was computed from.
        gradients: (P, ...) each patient's gradient of ``value``.
    """

    value: Tensor
    leaves: Mapping[nn.Parameter, Tensor]
    gradients: Tensor


class Recording:
    """Collects what operations on weights hand in, until the backward pass is over.

    Args:
        batch: the images, and whose they are; none of one patient alone, see `whole`.
        layout: of the model.
        on_layer: if given, it takes each layer's tapes and none is kept.
        scratch: memory for tapes that ``on_layer`` takes.

    Attributes:
        tapes: by weight, complete once `finish` was called; empty with ``on_layer``.
    """

    def __init__(
        self,
        batch: PatientBatch | None,
        layout: Layout,
        on_layer: OnLayer | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        self._batch = batch
        self._layout = layout
        self._on_layer = on_layer
        self._scratch = scratch if on_layer is not None else None
        self._borrower: nn.Parameter | None = None  # whose tape may lie in the scratch memory
        self._uses: Counter[nn.Parameter] = Counter()
        self._factors: defaultdict[nn.Parameter, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._meetings: list[Meeting] = []
        self._settled: set[nn.Parameter] = set()
        self.tapes: dict[nn.Parameter, Tape] = {}

    @property
    def num_images(self) -> int:
        """N, of the batch."""
        return len(self._several.patients)

    @property
    def _several(self) -> PatientBatch:
        assert self._batch is not None
        return self._batch

    def name(self, parameter: nn.Parameter) -> str:
        """What the model calls a weight."""
        return self._layout.names[parameter]

    def is_constant(self, x: Tensor) -> bool:
        """Whether ``x`` is a buffer or a frozen weight of the model."""
        frozen = isinstance(x, nn.Parameter) and not x.requires_grad
        return frozen or id(x) in self._layout.buffers

    def positions(self, x: Tensor) -> Tensor:
        """(n * k, ..., d) → (n, T, d): windows folded into the batch go back to their image."""
        if x.shape[0] % self.num_images:
            raise UsageError(
                f"private training does not cover this model: {x.shape[0]} rows for "
                f"{self.num_images} images"
            )
        return x.reshape(self.num_images, -1, x.shape[-1])

    def will_use(self, parameter: nn.Parameter) -> None:
        """Announce that the backward pass will hand in something for ``parameter``."""
        self._uses[parameter] += 1

    def product(self, parameter: nn.Parameter, a: Tensor, g: Tensor) -> None:
        """Take the factors a (n, T, d) and g (n, T, p) of each image's gradient g^T a."""
        factors = self._factors[parameter]
        factors.append((self._several.gather(_full(a)), self._several.gather(_full(g))))
        if len(factors) == self._uses[parameter]:
            self._settle_product(parameter)

    def each(self, parameter: nn.Parameter, gradients: Tensor) -> None:
        """Take each image's gradient (n, ...); those of several uses add up."""
        mine = self._several.fold(_full(gradients))
        known = self._sums.get(parameter)
        self._sums[parameter] = mine if known is None else known + mine
        self._uses[parameter] -= 1
        if not self._uses[parameter]:
            self._settle_sum(parameter)

    def meet(self, value: Tensor, leaves: Mapping[nn.Parameter, Tensor], gradients: Tensor) -> None:
        """Take each image's gradient (n, ...) of ``value``; see `Meeting`."""
        folded = self._several.fold(_full(gradients))
        self._meetings.append(Meeting(value=value, leaves=leaves, gradients=folded))

    def whole(self, parameter: nn.Parameter, gradient: Tensor | None) -> None:
        """Take the gradient of one patient alone."""
        if gradient is not None:
            self._settle(parameter, KeptTape(gradient.unsqueeze(0)))

    def finish(self) -> None:
        """Bring in what only the end of the backward pass makes complete."""
        for parameter in list(self._factors):
            self._settle_product(parameter)
        for parameter in list(self._sums):
            self._settle_sum(parameter)
        direct: dict[nn.Parameter, Tensor] = {}
        for meeting in self._meetings:
            for parameter, part in _carried_on(meeting).items():
                direct[parameter] = direct[parameter] + part if parameter in direct else part
        for parameter, gradients in direct.items():
            self._settle(parameter, KeptTape(gradients))
        if self._on_layer is not None:
            for layer in dict.fromkeys(self._layout.layers[p] for p in self.tapes):
                self._hand_over(layer)

    def _settle_product(self, parameter: nn.Parameter) -> None:
        factors = self._factors.pop(parameter)
        a, g = factors[0]
        if len(factors) > 1:
            a = torch.cat([a for a, _ in factors], dim=1)
            g = torch.cat([g for _, g in factors], dim=1)
        if self._borrower is None:
            tape = product_tape(a, g, parameter.shape, self._scratch)
            self._borrower = parameter
        else:
            tape = product_tape(a, g, parameter.shape)
        self._settle(parameter, tape)

    def _settle_sum(self, parameter: nn.Parameter) -> None:
        self._settle(parameter, KeptTape(self._sums.pop(parameter).view(-1, *parameter.shape)))

    def _settle(self, parameter: nn.Parameter, tape: Tape) -> None:
        if parameter in self._settled:
            name = self._layout.names[parameter]
            raise UsageError(f"private training does not cover {name}: it is used in two ways")
        self._settled.add(parameter)
        self.tapes[parameter] = tape
        if self._on_layer is not None:
            layer = self._layout.layers[parameter]
            if all(member in self.tapes for member in layer):
                self._hand_over(layer)

    def _hand_over(self, layer: tuple[nn.Parameter, ...]) -> None:
        assert self._on_layer is not None
        self._on_layer({p: self.tapes.pop(p) for p in layer if p in self.tapes})
        if self._borrower in layer:
            self._borrower = None


def _full(x: Tensor) -> Tensor:
    """At least 32 bits: norms and sums of half-precision gradients."""
    x = x.detach()
    return x if x.dtype in {torch.float32, torch.float64} else x.float()


def _carried_on(meeting: Meeting) -> dict[nn.Parameter, Tensor]:
    """Patients' gradients of a value, carried on to the weights that it was computed from."""
    leaves = meeting.leaves
    parts = torch.autograd.grad(
        meeting.value,
        list(leaves.values()),
        meeting.gradients,
        is_grads_batched=True,
        retain_graph=True,
        allow_unused=True,
    )
    return {p: part for p, part in zip(leaves, parts, strict=True) if part is not None}
