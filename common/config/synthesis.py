"""Synthetic augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class AugmentMode(Enum):
    """Synthetic augmentation at the site."""

    none = "none"


@dataclass(kw_only=True)
class AugmentConfig:
    """Synthetic augmentation at the site."""

    mode: AugmentMode = AugmentMode.none
