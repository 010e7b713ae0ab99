"""How much a comparison does, in three sizes. What the user sets wins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Size(StrEnum):
    """How much a comparison does."""

    smoke = "smoke"
    quick = "quick"
    full = "full"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What a size stands for.

    Attributes:
        epsilons: targets; infinity is training without privacy.
        seeds: of the runs of each way of training.
        overrides: settings for all trials.
        model: settings that go together, and only where the user names no model and no size.
    """

    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    model: tuple[str, ...] = ()


PRESETS = {
    Size.smoke: Preset(
        epsilons=(8.0, math.inf),
        seeds=(1,),
        overrides=("federation.rounds=1", "federation.steps_per_round=2"),
        model=("model=test_vit", "data.image_size=32"),
    ),
    Size.quick: Preset(
        epsilons=(1.0, 8.0, math.inf),
        seeds=(1, 2),
        overrides=("privacy.images_per_patient=1", "federation.rounds=4"),
    ),
    # The epsilons of Osuala et al. 2024, https://arxiv.org/abs/2407.12669
    Size.full: Preset(epsilons=(1.0, 6.0, 12.0, 20.0, 60.0, math.inf), seeds=(1, 2, 3)),
}
