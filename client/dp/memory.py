"""How many images fit into memory at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from client.dp.bookkeeping import Bookkeeper
from client.dp.loss import patient_loss
from client.dp.patients import PatientBatch
from common.config import Precision
from common.errors import UsageError

# Weights, their sum of gradients, the noise, the gradient, and two moments of an optimiser.
_COPIES_OF_WEIGHTS = 6

# What operations take in passing, on top of what they keep: up to a quarter of it was measured
# (clipping by layer, which makes each patient's gradient of one layer at a time).
_IN_PASSING = 1.4


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """What a private step takes; the process itself (Python, torch: about 0.5 GB) comes on top.

    Attributes:
        fixed_bytes: whatever the number of images.
        image_bytes: of each image that is held at once.
    """

    fixed_bytes: float
    image_bytes: float

    def of(self, num_images: int) -> float:
        """Bytes of a step that holds so many images at once."""
        return self.fixed_bytes + num_images * self.image_bytes


def images_that_fit(
    model: nn.Module, batch: PatientBatch, precision: Precision, *, limit_bytes: float
) -> int:
    """How many images a private step of ``model`` can hold in ``limit_bytes``.

    Raises:
        UsageError: if not even one image fits.
    """
    step = step_memory(model, batch, precision)
    fits = int((limit_bytes - step.fixed_bytes) / step.image_bytes)
    if fits < 1:
        raise UsageError(
            f"training.memory_gb={limit_bytes / 1e9:.3g}: one image needs "
            f"{step.of(1) / 1e9:.3g} GB; allow more, or train less of the model"
        )
    return fits


def step_memory(model: nn.Module, batch: PatientBatch, precision: Precision) -> StepMemory:
    """What a private step of ``model`` takes.

    Counts what a forward pass on the made-up ``batch`` keeps for the backward pass and what the
    backward pass keeps for the clipped sums, as if all of it were there at the same time.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr(): p for p in model.parameters()}
    with Bookkeeper(model).recording(batch) as recording:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = patient_loss(model, batch, precision)
        loss.backward()
    kept = sum(tape.num_bytes for tape in recording.tapes.values())
    activations = sum(size for place, size in saved.items() if place not in weights)
    of_one = _IN_PASSING * (kept + activations) / len(batch.labels)
    fixed = _COPIES_OF_WEIGHTS * sum(p.numel() * p.element_size() for p in model.parameters())
    return StepMemory(fixed_bytes=fixed, image_bytes=of_one)
