"""Weights that notice how they are used.

While a pass is recorded, each trainable weight of a model is replaced by a `Weight`. A function
of torch that gets one does not run by itself: what runs instead also makes each image's gradient
known. So the engine covers *operations*, whatever module they are written in (Swin V2, for one,
never calls the layer that holds its largest weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from client.dp.recording import Recording

Function = Callable[..., Any]
Run = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]


class Weight(Tensor):
    """A weight, or something computed from weights and constants alone.

    Attributes:
        run: runs a function of torch one of whose arguments is this.
        recording: where its uses are recorded.
        leaves: stand-ins, by weight, of what it was computed from.
        parameter: the weight, if it is one itself.
    """

    run: Run
    recording: Recording
    leaves: Mapping[nn.Parameter, Tensor]
    parameter: nn.Parameter | None

    @staticmethod
    def of(parameter: nn.Parameter, recording: Recording, run: Run) -> Weight:
        """The stand-in of one weight."""
        leaf = parameter.detach().requires_grad_()
        weight = leaf.as_subclass(Weight)
        weight.run, weight.recording = run, recording
        weight.leaves, weight.parameter = {parameter: leaf}, parameter
        return weight

    @staticmethod
    def computed(value: Tensor, sources: Iterable[Weight]) -> Weight:
        """What was computed from ``sources`` and constants."""
        weight = value.as_subclass(Weight)
        first, *others = sources
        weight.run, weight.recording, weight.parameter = first.run, first.recording, None
        weight.leaves = dict(first.leaves)
        for other in others:
            weight.leaves |= other.leaves
        return weight

    def names(self) -> str:
        """What it was computed from."""
        return ", ".join(self.recording.name(parameter) for parameter in self.leaves)

    @classmethod
    def __torch_function__(
        cls,
        func: Function,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hand the call to the first weight's ``run``."""
        del types
        given = dict(kwargs or {})
        weight = next((a for a in args if isinstance(a, Weight)), None)
        if weight is None:
            weight = next(t for t in tensors_in((args, given)) if isinstance(t, Weight))
        with torch._C.DisableTorchFunctionSubclass():
            return weight.run(func, args, given)


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in arguments of a function, lists and tuples opened."""
    match value:
        case Tensor():
            yield value
        case list() | tuple():
            for item in cast("Sequence[object]", value):
                yield from tensors_in(item)
        case dict():
            yield from tensors_in(list(cast("dict[str, object]", value).values()))
        case _:
            return
