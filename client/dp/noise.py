"""Noise of hospitals, for tensors; see `common.noise`."""

from __future__ import annotations

import torch
from torch import Tensor

from common.noise import Noise


class SystemNoise:
    """Gaussian noise under keys of the operating system's entropy.

    Args:
        key: 32 such bytes, for noise that its owner may have to draw again: all keys follow from
            it. Who knows it can remove the noise.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._noise = Noise(None if key is None else int.from_bytes(key))

    def added_to(self, values: Tensor, std: float) -> Tensor:
        """``values`` plus noise of standard deviation ``std``, added in 64 bits."""
        noise = torch.from_numpy(self._noise.normal(values.numel()))
        noisy = values.detach().cpu().double().flatten() + std * noise
        return noisy.to(values.dtype).view_as(values).to(values.device)
