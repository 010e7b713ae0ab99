"""No honest site passes the bound; one whose update is many times too large does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import Recipe, Weights
from server.bounds import Bound, Move, bound


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "mechanism": "dp_sgd",
        "unit": "patient",
        "accountant": "pld",
        "delta": 1e-5,
        "sampling_rate": 0.25,
        "noise_multiplier": 1.0,
        "steps": 5,
        "max_grad_norm": 0.7,
        "images_per_patient": 1,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "physical_batch": 8,
    }
    return Recipe(**(fields | changes))


def adam(gradients: np.ndarray, rate: float) -> float:
    """How far Adam takes one weight along these gradients."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=rate)
    for gradient in gradients:
        weight.grad = torch.tensor([float(gradient)])
        optimizer.step()
    return abs(float(weight.detach()))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.floats(-1e6, 1e6, allow_nan=False, width=32).filter(lambda g: g == 0 or abs(g) > 1e-3),
        min_size=1,
        max_size=12,
    )
)
def test_adam_never_passes_its_bound_whatever_the_gradients(gradients: list[float]) -> None:
    rate = 1e-3
    found = bound(
        recipe(optimizer="adam", learning_rate=rate, steps=len(gradients)),
        num_patients=10,
        num_weights=1,
    )
    assert adam(np.array(gradients), rate) <= found.largest


def test_the_bound_of_adams_last_step_is_reached() -> None:
    """Gradients that grow as (b1 / b2)^-i make Cauchy and Schwarz an equation."""
    steps, rate = 6, 1e-3
    growing = (0.9 / 0.999) ** -np.arange(steps, dtype=float)
    last = adam(growing, rate) - adam(growing[:-1], rate)
    bounds = [
        bound(
            recipe(optimizer="adam", learning_rate=rate, steps=n), num_patients=1, num_weights=1
        ).largest
        for n in (steps - 1, steps)
    ]
    assert last == pytest.approx((bounds[1] - bounds[0]) / 1.01, rel=1e-4)


def honest(recipe: Recipe, num_patients: int, dim: int, rng: np.random.Generator) -> float:
    """The worst honest site: every patient's gradient has the full norm and the same direction."""
    way, velocity = np.zeros(dim), np.zeros(dim)
    shift = np.zeros(dim)
    expected = recipe.sampling_rate * num_patients
    for _ in range(recipe.steps):
        drawn = rng.binomial(num_patients, recipe.sampling_rate)
        total = np.zeros(dim)
        total[0] = recipe.max_grad_norm * drawn
        total += rng.normal(0, recipe.noise_multiplier * recipe.max_grad_norm, dim)
        gradient = total / expected + shift + recipe.proximal_mu * way
        velocity = recipe.momentum * velocity + gradient
        way = way - recipe.learning_rate * velocity
    return float(np.linalg.norm(way))


CASES = [
    {},
    {"momentum": 0.0},
    {"proximal_mu": 2.0},
    {"noise_multiplier": 20.0},
    {"noise_multiplier": 0.01, "sampling_rate": 0.02},
    {"sampling_rate": 1.0},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize(("num_patients", "dim"), [(30, 10), (600, 3000)])
def test_honest_updates_stay_within_and_large_ones_do_not(
    changes: dict[str, Any], num_patients: int, dim: int
) -> None:
    asked = recipe(**changes)
    found = bound(asked, num_patients=num_patients, num_weights=dim)
    rng = np.random.default_rng(0)
    norms = [honest(asked, num_patients, dim, rng) for _ in range(200)]
    assert max(norms) <= found.norm
    # Tight: at most twenty times a typical site, and that where less than one patient is expected.
    assert 20 * float(np.median(norms)) > found.norm
    assert found.passed_by(Move(norm=1000 * max(norms), largest=1.0))


def test_a_control_variate_widens_the_bound_by_what_it_can_do() -> None:
    plain = recipe(momentum=0.0)
    controlled = recipe(momentum=0.0, controlled=True)
    narrow = bound(plain, num_patients=100, num_weights=50).norm
    wide = bound(controlled, num_patients=100, num_weights=50, control=3.0).norm
    # c itself: K lr |c|; the site's own is at most what its gradients can be.
    assert narrow + 5 * 0.1 * 3.0 < wide < 3 * narrow + 1.02 * 5 * 0.1 * 3.0


@pytest.mark.parametrize(
    "changes", [{"mechanism": "none", "noise_multiplier": 0.0}, {"unit": "image"}], ids=str
)
def test_where_nothing_is_known_nothing_is_refused(changes: dict[str, Any]) -> None:
    assert bound(recipe(**changes), num_patients=10, num_weights=5) == Bound()


def test_a_move_is_measured_over_all_weights() -> None:
    before: Weights = {"a": np.float32([1, 1]), "b": np.zeros((2, 2), np.float32)}
    after: Weights = {"a": np.float32([1, 4]), "b": np.full((2, 2), -2, np.float32)}
    assert Move.between(before, after) == Move(norm=5.0, largest=3.0)
    assert Move.from_zero({"a": np.float32([3, 4])}) == Move(norm=5.0, largest=4.0)
