from __future__ import annotations

import json
import math

import pytest
from dp_accounting import dp_event
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.events import (
    Event,
    GaussianRelease,
    GroupPoissonGaussianSteps,
    NonPrivateRelease,
    PoissonGaussianSteps,
    dump,
    load,
    merge,
    patient_level,
    within,
)

rates = st.floats(1e-6, 1.0)
noises = st.floats(0.3, 50.0)
counts = st.integers(0, 500)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(PoissonGaussianSteps, sampling_rate=rates, noise_multiplier=noises, steps=counts),
    st.builds(GaussianRelease, noise_multiplier=noises, count=counts),
    st.builds(NonPrivateRelease, reason=st.sampled_from(["raw metrics", "public study"])),
    st.builds(
        GroupPoissonGaussianSteps,
        sampling_rate=rates,
        noise_multiplier=noises,
        steps=counts,
        group_size=st.integers(1, 9),
    ),
)


@given(events)
def test_json_and_back_is_the_same_event(event: Event) -> None:
    assert load(json.loads(json.dumps(dump(event)))) == event


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "laplace", "count": 1},
        {"count": 1},
        {"kind": ["gaussian_release"], "noise_multiplier": 1.0},
        {"kind": "gaussian_release", "noise_multiplier": 1.0, "count": 1, "extra": 2},
        {"kind": "poisson_gaussian_steps", "noise_multiplier": 1.0, "steps": 1},
    ],
)
def test_unknown_kinds_and_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"kind=|fields="):
        load(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.5),
        ("sampling_rate", math.nan),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", "1"),
        ("steps", -1),
        ("steps", 2.5),
        ("steps", True),
    ],
)
def test_a_bad_field_is_named_with_its_value(name: str, value: object) -> None:
    fields: dict[str, object] = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 5}
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be"):
        load({"kind": "poisson_gaussian_steps", **fields, name: value})


def test_a_non_private_release_says_why() -> None:
    with pytest.raises(ValueError, match="reason"):
        NonPrivateRelease(reason=" ")


def test_events_of_dp_accounting() -> None:
    step = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=2.0, steps=7)
    gaussian = dp_event.GaussianDpEvent(2.0)
    assert step.event() == dp_event.SelfComposedDpEvent(
        dp_event.PoissonSampledDpEvent(0.1, gaussian), 7
    )
    release = GaussianRelease(noise_multiplier=2.0, count=3)
    assert release.event() == dp_event.SelfComposedDpEvent(gaussian, 3)
    assert NonPrivateRelease(reason="raw").event() == dp_event.NonPrivateDpEvent()


@given(st.lists(events, max_size=8))
def test_merging_keeps_every_count(several: list[Event]) -> None:
    def total(of: list[Event]) -> int:
        return sum(getattr(event, "steps", getattr(event, "count", 0)) for event in of)

    merged = list(merge(several))
    assert total(merged) == total(several)
    assert within(merged, several)
    assert within(several, merged)


def test_more_of_anything_is_not_within() -> None:
    five = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.0, steps=5)
    six = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.0, steps=6)
    less_noise = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=0.9, steps=1)
    assert within([five], [six])
    assert not within([six], [five])
    assert not within([five, five], [six])
    assert not within([less_noise], [six])
    assert not within([NonPrivateRelease(reason="raw")], [six])


@given(rates, st.integers(1, 2000))
def test_chances_of_drawing_a_patients_images_sum_to_one(rate: float, size: int) -> None:
    event = GroupPoissonGaussianSteps(
        sampling_rate=rate, noise_multiplier=1.0, steps=1, group_size=size
    )
    drawn, chances = event.sensitivities()
    assert math.fsum(chances) == pytest.approx(1.0, abs=1e-9)
    assert max(drawn) == size
    mean = math.fsum(n * p for n, p in zip(drawn, chances, strict=True))
    assert mean >= rate * size * (1 - 1e-9)


def test_patient_level_of_patient_level_multiplies_the_group() -> None:
    step = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.0, steps=5)
    assert patient_level(patient_level(step, 2), 3) == patient_level(step, 6)
    raw = NonPrivateRelease(reason="raw")
    assert patient_level(raw, 4) is raw
