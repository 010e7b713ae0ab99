"""Settings are checked where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from common.generators.settings import GanSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0.0},
        {"width": float("nan")},
        {"loss": "wasserstein"},
        {"steps_per_generator_step": 0},
        {"generator_learning_rate": 0.0},
        {"generator_batch": 0},
        {"ema": 1.0},
    ],
    ids=str,
)
def test_out_of_bounds_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}="):
        GanSettings(**wrong)
