"""What settings are held to."""

from __future__ import annotations

import math

from common.errors import UsageError


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise `UsageError` that names the setting, its value and the remedy, unless it holds."""
    if not condition:
        raise UsageError(f"{name}={value}: {remedy}")


def require_positive(name: str, value: float | None) -> None:
    """Hold a number, where there is one, to be finite and above 0."""
    if value is not None:
        require(math.isfinite(value) and value > 0, name, value, "must be a finite number above 0")
