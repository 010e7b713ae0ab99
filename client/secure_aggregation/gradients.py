"""Patients' clipped gradients in whole numbers, summed without a rounding error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from client import devices
from client.data.cohort import Cohort
from client.dp.clipping import Clipping
from client.dp.loader import Loader, PoissonDraws
from client.dp.training import RoundSeeds, Trainee
from common.messages import Recipe
from common.secure_aggregation.rounding import Whole, rounded

Gradient = Mapping[str, Tensor]


@runtime_checkable
class GivesGradients(Protocol):
    """A warm model that tells the gradients of single patients."""

    def patient_gradients(
        self, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds
    ) -> Iterator[Gradient]:
        """See `patient_gradients`; by name of weight."""
        ...


def patient_gradients(
    trainee: Trainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds
) -> Iterator[dict[nn.Parameter, Tensor]]:
    """The clipped gradient of each patient drawn for one step (private, not released).

    Who is drawn is as in `client.dp.training.train_round`: Poisson draws with the recipe's rate.

    Raises:
        TypeError: if there is no engine, which knows how to clip.
    """
    if trainee.engine is None:
        raise TypeError("gradients of patients need an engine")
    trainee.model.train()
    rng = np.random.default_rng(seeds.sampling)
    seed = int(rng.integers(2**63))
    device = devices.of(trainee.model)
    loader = Loader.of(cohort, recipe, trainee.augmentation, trainee.most_images, seed, device)
    loader = replace(loader, as_they_are=trainee.takes_features)
    clipping = Clipping(kind=recipe.clipping, max_grad_norm=recipe.max_grad_norm)
    with devices.drawing(device, int(rng.integers(2**63))):
        for batch in loader.batches(PoissonDraws(cohort, recipe, rng).draw()):
            for patient in batch.parts(1):
                yield dict(trainee.engine.clipped_sums(patient, clipping))


def summed(
    gradients: Iterable[Gradient],
    sizes: Mapping[str, int],
    *,
    max_grad_norm: float,
    clip: int,
    rng: np.random.Generator,
) -> Whole:
    """(num_weights,) sum of the patients' gradients in whole numbers, exact.

    Guarantees: each patient adds a vector whose sum of squares is at most
    `common.privacy.discrete.max_norm_squared`, whatever its gradient.

    Args:
        gradients: of each patient, by name of weight.
        sizes: entries of every weight, in the order of the sum.
        max_grad_norm: that gradients are clipped to.
        clip: whole numbers in one of these.
        rng: what rounding is drawn from.
    """
    total = np.zeros(sum(sizes.values()), dtype=np.int64)
    for gradient in gradients:
        flat = [
            gradient[name].detach().double().flatten().cpu().numpy()
            if name in gradient
            else np.zeros(size)
            for name, size in sizes.items()
        ]
        total += rounded(np.concatenate(flat) / max_grad_norm, clip=clip, rng=rng)
    return total
