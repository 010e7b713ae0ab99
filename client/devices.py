"""Where a model is trained: on processors, or on a GPU.

Whatever trains looks for its model's device; only who builds a model chooses one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.config import DeviceName
from common.errors import UsageError

CPU = torch.device("cpu")


def chosen(name: DeviceName, setting: str = "device=cuda") -> torch.device:
    """The device, prepared for private training.

    Args:
        name: what is asked for.
        setting: how a GPU was asked for, in the message that there is none.

    Raises:
        UsageError: a GPU is asked for, and torch finds none.
    """
    found = name is not DeviceName.cpu and torch.cuda.is_available()
    if name is DeviceName.cuda and not found:
        raise UsageError(f"{setting}: torch finds no GPU here; see nvidia-smi, or use the CPU")
    if not found:
        return CPU
    # Norms and sums of gradients are held to 32 bits; TF32 would keep 10 bits of each factor.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", torch.cuda.current_device())


def of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return CPU if first is None else first.device


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """Random numbers for tensors there."""
    return torch.Generator(device).manual_seed(seed)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; to a GPU the copy goes on while the program does."""
    if device.type == "cuda" and tensor.device == CPU:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def drawing(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, dropout and the like draw from ``seed``; outside, nothing has been drawn."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


def give_back(device: torch.device) -> None:
    """Leave memory that is not in use to others on the same GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
