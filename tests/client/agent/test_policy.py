"""The policy's file: what it may say, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent.policy import Policy, Window, parse, template
from common.config import Unit
from common.errors import UsageError


def test_the_template_is_a_policy_that_names_every_setting() -> None:
    policy = parse(template())
    assert policy.studies["my-study"].epsilon == 4.0
    assert policy.studies["my-study"].unit is Unit.patient
    assert (policy.paused, policy.hours, policy.generators) == (False, (), False)
    for item in fields(Policy):
        assert f"\n{item.name}:" in template()


def test_hours_are_read(policy_text: str) -> None:
    text = policy_text.replace("hours: []", 'hours: [20:00-06:00, "12:00-13:00"]')
    assert parse(text).hours[0] == Window(start=time(20), end=time(6))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("paused: false", "pausd: false", "pausd: unknown"),
        ("paused: false", "paused: maybe", "paused='maybe': must be true or false"),
        ("fedward.policy/1", "fedward.policy/2", "must be fedward.policy/1"),
        ("epsilon: 50.0", "epsilon: -1", "studies.phantom.epsilon=-1: must be a number above 0"),
        ("epsilon: 50.0", "epsilon: .inf", "studies.phantom.epsilon"),
        ("epsilon: 50.0, ", "", "studies.phantom.epsilon: missing"),
        ("delta: 1e-3", "delta: 0.6", "at most 0.5"),
        ("delta: 1e-3", "delta: 1e-3, epsilom: 2", "studies.phantom.epsilom: unknown"),
        ("accountant: rdp", "accountant: guess", "must be one of pld, rdp"),
        ("accountant: rdp", "unit: visit", "must be one of patient, image"),
        ("largest_sampling_rate: 0.5", "largest_sampling_rate: 2", "at most 1"),
        ("largest_sampling_rate: 0.5\n", "", "largest_sampling_rate: missing"),
        ("largest_steps: 10", "largest_steps: 2.5", "a whole number"),
        ("smallest_noise_multiplier: 1.0", "smallest_noise_multiplier: 0", "above 0"),
        ('models: ["test_*"]', "models: test_vit", "must be a list of texts"),
        ("hours: []", "hours: [25:00-26:00]", "must read HH:MM-HH:MM"),
        ("hours: []", "hours: [06:00-06:00]", "two different times"),
        ("paused: false", "metrics: {leave: off}", "metrics: unknown"),  # of earlier versions
    ],
)
def test_a_bad_policy_is_refused_by_name(
    policy_text: str, old: str, new: str, complaint: str
) -> None:
    assert old in policy_text
    with pytest.raises(UsageError, match=complaint.replace("[", r"\[")):
        parse(policy_text.replace(old, new))


@given(st.times(), st.times(), st.times())
def test_a_window_and_its_complement_are_the_day(start: time, end: time, moment: time) -> None:
    if start != end:
        inside = Window(start=start, end=end).holds(moment)
        assert Window(start=end, end=start).holds(moment) is not inside


def test_what_changed_is_named(policy_text: str) -> None:
    policy = parse(policy_text)
    assert policy.changed_from(policy) == ()
    assert replace(policy, paused=True).changed_from(policy) == ("paused",)
    assert "studies" in policy.changed_from(None)
