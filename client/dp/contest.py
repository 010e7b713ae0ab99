"""One process of a comparison of engines: it takes steps when told to, and says what they cost.

Run as ``python -m client.dp.contest JSON``, with the fields of `Entry`; answers each line of
standard input, ``step`` or ``peak``, with one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from client.dp import engines
from client.dp.clipping import Clipping
from client.dp.gradients import PatientOptimizer, PlainStep, PrivateStep, StepGradient
from client.dp.patients import PatientBatch
from common import models
from common.config import EngineName, FinetuneConfig, FinetuneMode, ModelConfig, Precision
from common.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What takes part.

    Attributes:
        architecture: timm's name of the model.
        image_size: in pixels.
        patch_size: in pixels, where it differs from the architecture's.
        batch: images, each of a patient of its own.
        engine: an `EngineName`, or ``"none"`` for the step without privacy.
        clipping: see `Clipping`.
        precision: a `Precision`.
        device: ``"cpu"`` or ``"cuda"``.
        finetune: a `FinetuneMode`.
    """

    architecture: str
    image_size: int
    patch_size: int | None
    batch: int
    engine: str
    clipping: str
    precision: str
    device: str
    finetune: str

    def build(self) -> tuple[StepGradient, PatientBatch]:
        """The step to time, and the made-up batch it is given."""
        model = models.build(
            ModelConfig(architecture=self.architecture, patch_size=self.patch_size),
            FinetuneConfig(mode=FinetuneMode(self.finetune)),
            image_size=self.image_size,
            num_classes=2,
            seed=0,
        )
        model.to(self.device).train()
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, 1, self.image_size, self.image_size)
        batch = PatientBatch(
            images=torch.randn(shape, generator=generator).to(self.device),
            labels=(torch.arange(self.batch) % 2).to(self.device),
            patients=torch.arange(self.batch).to(self.device),
            num_patients=self.batch,
        )
        return self._step(model), batch

    def _step(self, model: nn.Module) -> StepGradient:
        precision = Precision(self.precision)
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9
        )
        if self.engine == "none":
            return PlainStep(model, optimizer, expected_patients=self.batch, precision=precision)
        private = PatientOptimizer(
            optimizer,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=self.batch,
            generator=torch.Generator(self.device).manual_seed(1),
        )
        engine = engines.build(EngineName(self.engine), model, precision)
        return PrivateStep(engine, Clipping(kind=self.clipping, max_grad_norm=1.0), private)


def timed(step: StepGradient, batch: PatientBatch) -> float:
    """Seconds of one step: of the processor, or on a GPU of the clock."""
    if batch.images.is_cuda:
        torch.cuda.synchronize()
        before = time.perf_counter()
        step.step([batch])
        torch.cuda.synchronize()
        return time.perf_counter() - before
    before = time.process_time()
    step.step([batch])
    return time.process_time() - before


def peak_bytes(device: str) -> int:
    """The most memory that was in use: of the process, or of the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> None:
    """See the module."""
    entry = Entry(**json.loads(arguments[0]))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Opacus and torch, of hooks and vmap
    idle = peak_bytes(entry.device)
    try:
        step, batch = entry.build()
        timed(step, batch)
    except (UsageError, NotImplementedError, RuntimeError) as error:
        _say({"error": " ".join(str(error).split())[:200]})
        return
    _say({"idle_bytes": idle})
    for line in sys.stdin:
        if line.strip() == "step":
            _say({"seconds": timed(step, batch)})
        else:
            _say({"peak_bytes": peak_bytes(entry.device)})


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
