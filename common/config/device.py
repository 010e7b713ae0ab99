"""What training is done on."""

from __future__ import annotations

from enum import Enum


class DeviceName(Enum):
    """What may be asked for; ``auto`` is a GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
