"""Rounds that memory is too small for: anew, with fewer images at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from common.messages import Recipe

_log = logging.getLogger("fedward.client")
# On a CPU torch has no class of its own for it. The second is oneDNN's word for anything that it
# could not set up, seen where memory was short; whatever else it was fails again in the end.
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "could not create a primitive")


def train_within_memory(
    train: Callable[[Recipe], None], recipe: Recipe, *, start_over: Callable[[], object]
) -> None:
    """Train a round; if memory runs out, anew with half as many images at once.

    How many are held at once changes nothing but the order of sums, and which random views are
    drawn, if each attempt draws the same patients (`RoundSeeds.fixed`). Nothing of the attempt
    before has left, and the round is charged once: the entry of the ledger is of the one update
    that does leave.

    A round fails if one image at a time is too many. No patient has more of them at once than
    others (`client.dp.loader.Loader`), so that its failing does not tell who was drawn.

    Args:
        train: one round, with the recipe that it is given.
        recipe: as it was asked for.
        start_over: brings the model back to where the round begins.
    """
    while True:
        try:
            train(recipe)
        except (RuntimeError, MemoryError) as error:
            if recipe.physical_batch == 1 or not _is_of_memory(error):
                raise
        else:
            return
        start_over()
        recipe = replace(recipe, physical_batch=recipe.physical_batch // 2)
        _log.warning(
            "out of memory: the round begins anew with %d images at once (set "
            "training.physical_batch or training.memory_gb)",
            recipe.physical_batch,
        )


def _is_of_memory(error: Exception) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in _NO_MEMORY)
