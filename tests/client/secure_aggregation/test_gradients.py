from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine
from client.dp.training import RoundSeeds, Trainee
from client.local_model import Surroundings
from client.secure_aggregation.gradients import GivesGradients, patient_gradients, summed
from common.privacy.discrete import max_norm_squared


def _training(consortium: Any, rate: float) -> tuple[Any, Any, Any]:
    setup = consortium.setup("hospital-1")
    recipe = consortium.request(sampling_rate=rate).recipe
    return setup.model.prepare(recipe, Surroundings(cohort=setup.cohort)), setup.cohort, recipe


def test_each_patient_has_one_clipped_gradient(consortium: Any) -> None:
    training, cohort, recipe = _training(consortium, 1.0)
    assert isinstance(training, GivesGradients)
    found = list(training.patient_gradients(cohort, recipe, RoundSeeds(sampling=1, noise=2)))
    assert len(found) == cohort.num_patients
    names = {n for n, p in training.model.named_parameters() if p.requires_grad}
    for gradient in found:
        assert set(gradient) == names
        norm = float(torch.cat([v.flatten() for v in gradient.values()]).norm())
        assert norm <= recipe.max_grad_norm * (1 + 1e-6)


@pytest.mark.parametrize("head", [True, False])
def test_they_add_up_to_what_the_engine_sums(consortium: Any, head: bool) -> None:
    setup = consortium.setup("hospital-1")
    recipe = consortium.request(sampling_rate=1.0).recipe
    model = setup.model.build()
    if not head:
        model.requires_grad_(True)
    engine = BookkeepingEngine(model)
    trainee = Trainee(model=model, engine=engine)
    cohort = setup.cohort
    seeds = RoundSeeds(sampling=1, noise=2)
    total: dict[Any, torch.Tensor] = {}
    for gradient in patient_gradients(trainee, cohort, recipe, seeds):
        for parameter, value in gradient.items():
            total[parameter] = total.get(parameter, torch.zeros_like(value)) + value
    # all patients of one step at once, with the very images that were drawn
    rng = np.random.default_rng(1)
    from client.dp.loader import Loader, PoissonDraws

    seed = int(rng.integers(2**63))
    loader = Loader.of(cohort, recipe, trainee.augmentation, None, seed)
    rng.integers(2**63)
    expected: dict[Any, torch.Tensor] = {}
    for batch in loader.batches(PoissonDraws(cohort, recipe, rng).draw()):
        for parameter, value in engine.clipped_sums(
            batch, Clipping(kind="flat", max_grad_norm=1.0)
        ):
            expected[parameter] = expected.get(parameter, torch.zeros_like(value)) + value
    assert set(total) == set(expected)
    for parameter, value in expected.items():
        torch.testing.assert_close(total[parameter], value, rtol=1e-4, atol=1e-5)


def test_one_patient_changes_the_sum_by_no_more_than_the_bound() -> None:
    rng = np.random.default_rng(0)
    sizes = {"a": 300, "b": 5}

    def gradient(norm: float) -> dict[str, torch.Tensor]:
        flat = torch.from_numpy(rng.normal(size=305))
        flat = flat / flat.norm() * norm
        return {"a": flat[:300].reshape(3, 100), "b": flat[300:]}

    others = [gradient(0.4) for _ in range(5)]
    for wild in (gradient(0.5), gradient(100.0), {"a": torch.full((3, 100), torch.nan)}):
        both = [
            summed(some, sizes, max_grad_norm=0.5, clip=64, rng=np.random.default_rng(7))
            for some in (others, [*others, wild])
        ]
        change = both[1] - both[0]
        assert int(change @ change) <= max_norm_squared(64, 305)


def test_nobody_drawn_is_a_sum_of_zeros() -> None:
    total = summed([], {"a": 4}, max_grad_norm=1.0, clip=64, rng=np.random.default_rng(0))
    assert total.tolist() == [0, 0, 0, 0]


def test_gradients_without_an_engine_are_refused(consortium: Any) -> None:
    setup = consortium.setup("hospital-1")
    trainee = Trainee(model=setup.model.build(), engine=None)
    recipe = consortium.request().recipe
    with pytest.raises(TypeError, match="engine"):
        list(patient_gradients(trainee, setup.cohort, recipe, RoundSeeds(sampling=1, noise=1)))
