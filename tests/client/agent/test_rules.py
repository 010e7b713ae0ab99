"""Of request and policy the stricter wins, or the site refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent import rules
from client.agent.policy import parse
from client.agent.rules import Work
from common.messages import Reason, Recipe

WORK = Work(study="phantom", model="test_vit", generator=False, num_patients=6, num_images=40)


def at(hour: int) -> datetime:
    return datetime(2026, 3, 2, hour, 30, tzinfo=UTC)


@pytest.fixture
def recipe(request_of: Any) -> Recipe:
    return request_of().recipe


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"study": "another"}, Reason.unapproved_study),
        ({"model": "vit_tiny"}, Reason.unapproved_model),
        ({"model": "dcgan", "generator": True}, Reason.unapproved_generator),
        ({"num_patients": 3}, Reason.small_batch),
    ],
)
def test_the_sites_own_work_is_held_to_the_policy_too(
    policy_text: str, recipe: Recipe, change: dict[str, Any], reason: Reason | None
) -> None:
    assert rules.refusal(parse(policy_text), replace(WORK, **change), recipe) is reason


def test_a_generator_needs_permission_and_no_model_of_the_list(
    policy_text: str, recipe: Recipe
) -> None:
    policy = parse(policy_text.replace("generators: false", "generators: true"))
    assert rules.refusal(policy, replace(WORK, model="dcgan", generator=True), recipe) is None


def test_the_batch_is_counted_in_the_recipes_unit(recipe: Recipe) -> None:
    assert WORK.expected_batch(recipe) == 3.0
    assert WORK.expected_batch(replace(recipe, unit="image")) == 20.0


def test_paused_and_hours_close_the_site(policy_text: str) -> None:
    night = parse(policy_text.replace("hours: []", "hours: [20:00-06:00, 12:00-13:00]"))
    closed = [rules.closed(night, at(hour)) for hour in (5, 6, 12, 13, 19, 20)]
    outside = Reason.outside_hours
    assert closed == [None, outside, None, outside, outside, None]
    assert rules.closed(replace(night, paused=True), at(5)) is Reason.paused


@given(noise=st.floats(0.01, 3), rate=st.floats(0.01, 1), steps=st.integers(1, 30), data=st.data())
def test_nothing_weaker_than_the_policy_ever_passes(
    noise: float, rate: float, steps: int, data: st.DataObject
) -> None:
    policy = replace(
        parse(TEXT),
        smallest_noise_multiplier=data.draw(st.floats(0.01, 3)),
        largest_sampling_rate=data.draw(st.floats(0.01, 1)),
        largest_steps=data.draw(st.integers(1, 30)),
    )
    recipe = replace(BASE, noise_multiplier=noise, sampling_rate=rate, steps=steps)
    allowed = rules.refusal(policy, replace(WORK, num_patients=10_000), recipe) is None
    assert allowed == (
        noise >= policy.smallest_noise_multiplier
        and rate <= policy.largest_sampling_rate
        and steps <= policy.largest_steps
    )


TEXT = """\
schema: fedward.policy/1
studies: {phantom: {epsilon: 1, delta: 1e-5}}
smallest_noise_multiplier: 1
smallest_expected_batch: 2
largest_sampling_rate: 0.5
largest_steps: 10
models: ["test_*"]
"""
BASE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-3,
    sampling_rate=0.5,
    noise_multiplier=2.0,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="adam",
    learning_rate=0.01,
    physical_batch=8,
)
