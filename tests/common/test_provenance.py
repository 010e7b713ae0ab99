from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from common import provenance
from common.errors import UsageError
from common.privacy import accountants
from common.privacy.events import PoissonGaussianSteps
from common.provenance import Charge, Kind, Provenance

STEPS = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=2.0, steps=40)


def charge(site: str = "hospital-1", steps: PoissonGaussianSteps = STEPS) -> Charge:
    return Charge(
        site=site,
        cohort="c1",
        num_patients=200,
        requests=("r/1/train",),
        events=(steps,),
        delta=1e-5,
        unit="patient",
        accountant="pld",
    )


PRIVATE = Provenance(kind=Kind.private, studies=("cbis",), charges=(charge(),), seed=3)
LEAKY = Provenance(kind=Kind.not_private, reason="a GAN without privacy", studies=("cbis",))
PUBLIC = Provenance(kind=Kind.public, reason="drawn by a program")


def fields() -> dict[str, Any]:
    return json.loads(provenance.dumps(PRIVATE))


@pytest.mark.parametrize("made", [PRIVATE, LEAKY, PUBLIC])
def test_what_is_written_is_read_back(made: Provenance, tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_text(provenance.dumps(made))
    assert provenance.read_file(path) == made
    weights = tmp_path / "g.safetensors"
    metadata = {provenance.METADATA_KEY: provenance.dumps(made)}
    save_file({"w": np.zeros(2, np.float32)}, weights, metadata=metadata)
    assert provenance.read_weights_file(weights) == made


def test_epsilon_is_that_of_the_events() -> None:
    expected = accountants.build("pld").epsilon([STEPS], 1e-5)
    assert PRIVATE.epsilon == expected
    assert fields()["epsilon"] == fields()["charges"][0]["epsilon"] == expected
    cheaper = charge("hospital-2", replace(STEPS, steps=10))
    both = replace(PRIVATE, charges=(cheaper, charge()))
    assert both.epsilon == expected
    assert provenance.worst(both.charges) == (STEPS,)
    assert LEAKY.epsilon == math.inf
    assert json.loads(provenance.dumps(LEAKY))["epsilon"] is None
    assert PUBLIC.epsilon == 0.0


def test_whom_it_concerns() -> None:
    assert PRIVATE.concerns("cbis")
    assert not PRIVATE.concerns("kermany")
    assert replace(LEAKY, studies=()).concerns("kermany"), "nobody knows whose patients it saw"
    assert not PUBLIC.concerns("cbis")


def _less(record: dict[str, Any]) -> None:
    record["charges"][0]["epsilon"] *= 0.99


def _no_events(record: dict[str, Any]) -> None:
    record["charges"][0]["events"] = []


def _leak(record: dict[str, Any]) -> None:
    record["charges"][0]["events"].append({"kind": "non_private_release", "reason": "x"})
    record["charges"][0]["epsilon"] = None


def _public(record: dict[str, Any]) -> None:
    record["kind"] = "public"
    record["reason"] = "because"


def _silent(record: dict[str, Any]) -> None:
    record["kind"] = "not_private"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_less, "less than its events cost"),
        (_no_events, "private needs events"),
        (_leak, "private needs events"),
        (_public, "charges nobody"),
        (_silent, "without privacy"),
        (lambda record: record.pop("kind"), "kind is missing"),
        (lambda record: record.update(kind="secret"), "secret"),
        (lambda record: record.update(schema="fedward.provenance/9"), "schema"),
        (lambda record: record.update(charges=7), "not iterable"),
        (lambda record: record["charges"][0].pop("site"), "site is missing"),
        (lambda record: record["charges"][0]["events"][0].update(steps=-1), "steps"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(
    change: Any, words: str, tmp_path: Path
) -> None:
    record = fields()
    change(record)
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=words) as error:
        provenance.read_file(path)
    assert "\n" not in str(error.value)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a provenance"):
        provenance.loads(text, where="file")


def test_files_without_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no provenance"):
        provenance.read_file(tmp_path / "absent.json")
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text"):
        provenance.read_file(tmp_path / "latin.json")
    bare = tmp_path / "bare.safetensors"
    save_file({"w": np.zeros(2, np.float32)}, bare)
    with pytest.raises(UsageError, match="what it was trained on is unknown"):
        provenance.read_weights_file(bare)
    bare.write_bytes(bare.read_bytes()[:20])
    with pytest.raises(UsageError, match="not a safetensors file"):
        provenance.read_weights_file(bare)
    with pytest.raises(UsageError, match="not a safetensors file"):
        provenance.read_weights_file(tmp_path / "absent.safetensors")


OTHER = replace(charge("hospital-2"), cohort="c2")


@pytest.mark.parametrize(
    ("sources", "kind", "epsilon"),
    [
        ([PUBLIC, PUBLIC], Kind.public, 0.0),
        ([PUBLIC, PRIVATE], Kind.private, PRIVATE.epsilon),
        ([PRIVATE, LEAKY, PUBLIC], Kind.not_private, math.inf),
    ],
)
def test_what_many_things_made_is_as_private_as_the_worst_of_them(
    sources: list[Provenance], kind: Kind, epsilon: float
) -> None:
    made = provenance.combined(sources)
    assert made.kind is kind
    assert made.epsilon == epsilon
    assert provenance.loads(provenance.dumps(made), where="x") == made
    if kind is not Kind.public:
        assert made.concerns("cbis")


def test_a_cohort_that_paid_twice_paid_both() -> None:
    more = replace(charge(), requests=("r/2/train",), delta=1e-6)
    later = replace(PRIVATE, charges=(more, OTHER), studies=("kermany",))
    made = provenance.combined([PRIVATE, later])
    assert [one.site for one in made.charges] == ["hospital-1", "hospital-2"]
    both = made.charges[0]
    assert both.requests == ("r/1/train", "r/2/train")
    assert both.epsilon == accountants.build("pld").epsilon([STEPS, STEPS], 1e-6)
    assert made.epsilon == both.epsilon
    assert provenance.worst((charge(), more)) == both.events
    assert made.studies == ("cbis", "kermany")
    unsplit = replace(PRIVATE, charges=(charge(), more))
    assert unsplit.epsilon == both.epsilon, "two charges of one cohort were taken for two cohorts"


def test_one_payment_named_twice_is_one() -> None:
    made = provenance.combined([PRIVATE, replace(PRIVATE, seed=4)])
    assert made.charges == PRIVATE.charges


@pytest.mark.parametrize("requests", [(), ("r/1/train",)])
def test_events_are_never_lost_to_a_payment_that_is_named_already(
    requests: tuple[str, ...],
) -> None:
    more = replace(charge(steps=replace(STEPS, steps=400)), requests=requests)
    for pair in ((charge(), more), (more, charge())):
        (both,) = provenance.by_cohort(pair)
        assert both.epsilon >= more.epsilon > charge().epsilon
        assert replace(PRIVATE, charges=pair).epsilon >= more.epsilon


def test_where_one_source_may_be_of_any_study_so_may_be_the_whole() -> None:
    made = provenance.combined([PRIVATE, replace(LEAKY, studies=())])
    assert made.studies == ()
    assert made.concerns("anything")
    assert provenance.combined([PRIVATE, PUBLIC]).studies == ("cbis",)
