"""How much memory a process for hospitals takes, so that no more are started than fit."""

from __future__ import annotations

import numpy as np

from client.dp.check import made_up_batch
from client.dp.memory import StepMemory, step_memory
from common.config import Config, Job
from common.errors import UsageError
from simulations.sites import SimulatedSites, shared_model

# Python, torch, Ray's client, and what a round sends and gets; seen: 0.6 to 0.8 GB.
_PROCESS_BYTES = 800_000_000
# CUDA's own of a GPU, for each process; a guess on the safe side, no GPU was at hand.
_CUDA_BYTES = 1_000_000_000


def process_bytes(sites: SimulatedSites) -> int:
    """Bytes of a process in which the hospitals of a run train, one at a time.

    A step's part is bounded by ``training.memory_gb``, if that is set; it is not there where
    hospitals train on a GPU. The images themselves are mapped from files, and the system takes
    that memory back when it needs it.

    Raises:
        UsageError: if the run trains a generator, whose step is not measured.
    """
    step = 0.0 if sites.config.simulation.gpus_per_site else _step_bytes(sites)
    return int(_PROCESS_BYTES + step)


def gpu_share(sites: SimulatedSites, gpu_bytes: int) -> float:
    """The same of a GPU, as a share of the memory that it has; above 1 it does not fit.

    Raises:
        UsageError: as `process_bytes`.
    """
    return (_CUDA_BYTES + _step_bytes(sites)) / gpu_bytes


def _step_bytes(sites: SimulatedSites) -> float:
    config = sites.config
    limit = config.training.memory_gb
    step = _step(config, sites.num_classes, _image_shape(sites)).of(config.training.physical_batch)
    return step if limit is None else min(step, limit * 1e9)


def _step(config: Config, num_classes: int, image_shape: tuple[int, ...]) -> StepMemory:
    """Of a private step, which takes more than one without privacy."""
    if config.job is Job.synthesize:
        raise UsageError(
            "simulation.client_resources=auto: measures the training of a classifier; use given"
        )
    depth = image_shape[1] if len(image_shape) == 4 else None
    model = shared_model(config, num_classes, depth).build().train()
    batch = made_up_batch(
        image_shape, num_outputs=num_classes, multilabel=False, one_image_each=False
    )
    return step_memory(model, batch, config.training.precision)


def _image_shape(sites: SimulatedSites) -> tuple[int, ...]:
    images = sites.run_dir.cohort(sites.names[0]) / "images.npy"
    return np.load(images, mmap_mode="r").shape[1:]
