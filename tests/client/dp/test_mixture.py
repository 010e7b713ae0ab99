from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from client.data.cohort import Cohort
from client.dp.engine import BookkeepingEngine
from client.dp.mixture import Mixture
from client.dp.training import RoundSeeds, Trainee, train_round
from common.messages import Recipe

RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=0.25,
    noise_multiplier=1.0,
    steps=1,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="sgd",
    learning_rate=1.0,
    physical_batch=8,
    synthetic_ratio=0.5,
)
SEEDS = RoundSeeds(sampling=1, noise=2)


def cohort(num: int, *, brightness: float = 0.5) -> Cohort:
    return Cohort(
        images=np.full((num, 1, 4, 4), brightness, np.float32),
        labels=np.arange(num) % 2,
        patients=np.arange(num),
        num_patients=num,
        patient_ids=(),
    )


def test_synthetic_images_join_in_a_fixed_number() -> None:
    mixture = Mixture.of(RECIPE, cohort(80), cohort(7))
    rng = np.random.default_rng(0)
    drawn = [mixture.draw(rng) for _ in range(50)]
    assert {len(rows) for rows in drawn} == {10}
    assert {int(row[0]) for rows in drawn for row in rows} == set(range(7))
    assert mixture.expected == 20 + 10


def test_or_as_patients_do() -> None:
    recipe = replace(RECIPE, synthetic_ratio=0.0, synthetic_as_patients=True)
    mixture = Mixture.of(recipe, cohort(80), cohort(400))
    rng = np.random.default_rng(0)
    sizes = [len(mixture.draw(rng)) for _ in range(300)]
    assert np.mean(sizes) == pytest.approx(100, abs=2)
    assert np.std(sizes) == pytest.approx((400 * 0.25 * 0.75) ** 0.5, rel=0.15)
    assert mixture.expected == 20 + 100


def test_without_a_pool_nothing_joins() -> None:
    plain = replace(RECIPE, synthetic_ratio=0.0)
    mixture = Mixture.of(plain, cohort(80), cohort(7))
    assert mixture.pool is None
    assert mixture.draw(np.random.default_rng(0)) == []
    assert mixture.expected == 20
    with pytest.raises(ValueError, match="there are none"):
        Mixture.of(RECIPE, cohort(80), None)


def trained(recipe: Recipe, patients: Cohort, pool: Cohort | None) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    before = model[1].weight.detach().clone()
    engine = BookkeepingEngine(model) if recipe.private else None
    train_round(Trainee(model=model, engine=engine, pool=pool), patients, recipe, SEEDS)
    return model[1].weight.detach() - before


def test_the_noise_is_that_of_the_patients_alone_over_the_larger_step() -> None:
    """Ten synthetic images more in a step of twenty: the same noise, divided by thirty."""
    quiet = replace(RECIPE, noise_multiplier=1e-6)
    with_pool = trained(RECIPE, cohort(80), cohort(7)) - trained(quiet, cohort(80), cohort(7))
    plain = replace(RECIPE, synthetic_ratio=0.0)
    bare = replace(quiet, synthetic_ratio=0.0)
    without = trained(plain, cohort(80), None) - trained(bare, cohort(80), None)
    assert torch.allclose(with_pool * 30, without * 20, rtol=1e-3, atol=1e-4)


def test_a_patient_moves_the_step_by_no_more_than_without_synthetic_images() -> None:
    """One patient's images become a hundred times as bright; the others' draws do not change."""
    quiet = replace(RECIPE, noise_multiplier=1e-9, sampling_rate=1.0)
    few, pool = cohort(5), cohort(7)
    loud = replace(few, images=few.images.copy())
    loud.images[2] = 100.0
    moved = (trained(quiet, few, pool) - trained(quiet, loud, pool)).norm()
    divisor = Mixture.of(quiet, few, pool).expected
    assert 0 < float(moved) * divisor <= 2.0 + 1e-5


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
def test_synthetic_images_teach(mechanism: str) -> None:
    quiet = replace(RECIPE, mechanism=mechanism, noise_multiplier=1e-9)
    dark = trained(quiet, cohort(80), cohort(7, brightness=0.1))
    bright = trained(quiet, cohort(80), cohort(7, brightness=0.9))
    assert not torch.allclose(dark, bright, atol=1e-3)
