"""Per-patient clipping at nearly the cost of ordinary training: book-keeping.

One backward pass runs without computing any weight's gradient; each operation on a weight keeps
its input and the gradient of its output, or each patient's gradient where that is smaller. From
these follow the norm of every patient's gradient and then, once the clipping factors are known,
the sum of clipped gradients, by one weighted product for each weight (Bu et al. 2023,
"Differentially Private Optimization on Large Model at Small Cost", arXiv 2210.00038).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn

from client.dp.operations import run
from client.dp.patients import PatientBatch, Patients
from client.dp.recording import Layout, OnLayer, Recording
from client.dp.scratch import Scratch
from client.dp.weight import Weight


class Bookkeeper:
    """Records passes of one model, whose trainable weights are those of now."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._scratch = Scratch()
        names: dict[nn.Parameter, str] = {}
        layers: dict[nn.Parameter, tuple[nn.Parameter, ...]] = {}
        for module_name, module in model.named_modules():
            mine = {k: p for k, p in module.named_parameters(recurse=False) if p.requires_grad}
            for key, parameter in mine.items():
                self._places.append((module, key, parameter))
                names.setdefault(parameter, f"{module_name}.{key}".strip("."))
            new = tuple(p for p in mine.values() if p not in layers)
            layers.update(dict.fromkeys(new, new))
        buffers = {id(buffer): buffer for buffer in model.buffers()}
        self._layout = Layout(names=names, layers=layers, buffers=buffers)

    @property
    def num_layers(self) -> int:
        """How many modules own trainable weights."""
        return len(set(self._layout.layers.values()))

    @contextmanager
    def recording(self, batch: Patients, on_layer: OnLayer | None = None) -> Iterator[Recording]:
        """A forward and a backward pass of ``batch`` inside are recorded; then it is complete.

        Of a patient in pieces, there may be one of each piece: their gradients add up.

        Raises:
            UsageError: (inside) if a weight is used in a way that is not covered.
        """
        several = batch if isinstance(batch, PatientBatch) and batch.num_patients != 1 else None
        recording = Recording(several, self._layout, on_layer, self._scratch)
        if several is None:  # the patient's gradient is the gradient
            stand_ins = {p: p.detach().requires_grad_() for p in self._layout.names}
        else:
            stand_ins = {p: Weight.of(p, recording, run) for p in self._layout.names}
        for module, key, parameter in self._places:
            module._parameters[key] = cast("nn.Parameter", stand_ins[parameter])
        try:
            yield recording
        finally:
            for module, key, parameter in self._places:
                module._parameters[key] = parameter
        if several is None:
            for parameter, leaf in stand_ins.items():
                recording.whole(parameter, leaf.grad)
        recording.finish()
