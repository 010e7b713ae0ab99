"""Terms against drift: added after the noise, by their formulas, and to nothing but the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from client.data.cohort import Cohort
from client.dp.drift import correct
from client.dp.engine import BookkeepingEngine
from client.dp.training import RoundSeeds, Trainee, train_round
from common.messages import Recipe


def make_cohort() -> Cohort:
    rng = np.random.default_rng(0)
    return Cohort(
        images=rng.random((9, 1, 4, 4), dtype=np.float32),
        labels=rng.integers(0, 2, 9),
        patients=np.array([0, 1, 1, 2, 3, 3, 3, 4, 5]),
        num_patients=6,
        patient_ids=tuple("abcdef"),
    )


def make_recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "mechanism": "dp_sgd",
        "unit": "patient",
        "accountant": "pld",
        "delta": 1e-5,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.0,
        "steps": 1,
        "max_grad_norm": 1.0,
        "images_per_patient": 4,
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "physical_batch": 32,
        "momentum": 0.0,
    }
    return Recipe(**(fields | changes))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2))


def weights_after(
    recipe: Recipe, shift: dict[str, torch.Tensor] | None = None
) -> dict[str, np.ndarray]:
    model = make_model()
    trainee = Trainee(model=model, engine=BookkeepingEngine(model), shift=shift)
    cohort = make_cohort()
    train_round(trainee, cohort, recipe, RoundSeeds(sampling=1, noise=2))
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def test_a_shift_moves_each_step_by_the_learning_rate_and_is_neither_clipped_nor_noised() -> None:
    """1000 times the clipping norm goes through whole, and the noise stays what it was."""
    recipe = make_recipe(learning_rate=0.5, max_grad_norm=1e-3)
    shift = {name: torch.full_like(p, 1.0) for name, p in make_model().named_parameters()}
    without, with_shift = weights_after(recipe), weights_after(recipe, shift)
    for name, value in with_shift.items():
        np.testing.assert_allclose(value, without[name] - 0.5, atol=1e-6)


def test_the_proximal_term_is_nothing_at_first_and_then_pulls_back() -> None:
    plain = make_recipe(learning_rate=0.1)
    start = {name: p.detach().numpy() for name, p in make_model().named_parameters()}
    first = weights_after(plain)
    pulled = weights_after(make_recipe(learning_rate=0.1, proximal_mu=3.0))
    for name, value in pulled.items():
        np.testing.assert_array_equal(value, first[name])
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    correct(optimizer, model, proximal_mu=3.0)
    gradients = torch.tensor([[[1.0, -1.0]], [[0.5, 2.0]], [[0.0, 0.0]]])
    expected = anchor = np.array([[1.0, 2.0]])
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        optimizer.step()
        expected = expected - 0.1 * (gradient.numpy() + 3.0 * (expected - anchor))
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-6)
    assert start.keys() == first.keys()
