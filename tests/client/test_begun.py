"""A second attempt at a charged round is the first one again, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import classifier as classifier_module
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds, train_round
from client.kept import Kept
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.messages import Reason, Recipe, Status, TrainReply, TrainRequest
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.cohort import patient_hashes
from common.seeds import SimulatedSeeds, SystemSeeds

MODEL = SiteModel(
    config=ModelConfig(architecture="test_vit", patch_size=16),
    finetune=FinetuneConfig(mode=FinetuneMode.head),
    image_size=32,
    num_classes=2,
    seed=5,
)
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-3,
    sampling_rate=0.5,
    noise_multiplier=1.0,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="sgd",
    learning_rate=0.1,
    physical_batch=8,
    momentum=0.0,
)


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def setup(tmp_path: Path) -> SiteSetup:
    rng = np.random.default_rng(0)
    cohort = Cohort(
        images=rng.random((8, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 8),
        patients=np.arange(8),
        num_patients=8,
        patient_ids=tuple(f"p{number}" for number in range(8)),
    )
    return SiteSetup(
        name="hospital-1",
        cohort=cohort,
        patient_hashes=patient_hashes(cohort.patient_ids, bytes(32)),
        ledger=tmp_path / "hospital-1.sqlite",
        replies=tmp_path / "replies",
        budget=Budget(epsilon=50.0, delta=1e-3, accountant="rdp"),
        model=MODEL,
        seeds=SystemSeeds(),
    )


def make_request(**changes: Any) -> TrainRequest:
    model = MODEL.build()
    return TrainRequest(
        run_id="run",
        round=1,
        recipe=replace(RECIPE, **changes),
        frozen_sha256=models.frozen_sha256(model),
        weights=models.trainable_weights(model),
    )


def crash_before_storing(
    setup: SiteSetup, request: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> Kept:
    """What the attempt would have stored."""
    made: list[Kept] = []

    def die(kept: Kept, _: Path) -> None:
        made.append(kept)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "write", die)
        with pytest.raises(Crash):
            Site(setup).train(request)
    return made[0]


def digest(found: Kept | TrainReply) -> str:
    assert found.weights
    return models.weights_sha256(found.weights)


def open_entries(setup: SiteSetup) -> int:
    with setup.open_ledger(setup.budget.unit) as ledger:
        return sum(entry.state is State.reserved for entry in ledger.entries())


def test_a_hospital_repeats_its_noise_and_its_draws_until_they_have_left(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two outcomes of one charge exist."""
    request = make_request()
    first = crash_before_storing(setup, request, monkeypatch)
    assert digest(crash_before_storing(setup, request, monkeypatch)) == digest(first)
    (begun,) = setup.replies.glob("*.begun")
    assert begun.stat().st_mode & 0o077 == 0
    reply = Site(setup).train(request)
    assert reply.status is Status.trained
    assert digest(reply) == digest(first)
    assert not list(setup.replies.glob("*.begun"))
    assert open_entries(setup) == 0


def test_a_key_that_a_crash_left_beside_a_stored_reply_goes(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds it could take the noise out of what has left."""

    unlink = Path.unlink

    def die_at_the_key(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".begun":
            raise Crash
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die_at_the_key)
        with pytest.raises(Crash):
            Site(setup).train(make_request())
    assert list(setup.replies.glob("*.begun"))
    assert list(setup.replies.glob("*.safetensors"))
    assert Site(setup).train(make_request()).status is Status.trained
    assert not list(setup.replies.glob("*.begun"))


def changed(request: TrainRequest, what: str) -> TrainRequest:
    match what:
        case "weights":
            weights = {name: value + np.float32(1e-6) for name, value in request.weights.items()}
            return replace(request, weights=weights)
        case "control":
            return replace(request, control=dict(request.weights))
        case _:
            return replace(request, recipe=replace(request.recipe, **{what: 0.2}))


@pytest.mark.parametrize("what", ["weights", "control", "learning_rate", "max_grad_norm"])
def test_what_was_begun_is_not_gone_on_with_as_something_else(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The event in the ledger is the same: only the request tells them apart."""
    request = make_request(controlled=what == "control")
    crash_before_storing(setup, request, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(classifier_module, "train_round", no_training)
        reply = Site(setup).train(changed(request, what))
    assert (reply.status, reply.reason) == (Status.refused, Reason.bad_request)
    assert open_entries(setup) == 1
    assert Site(setup).train(request).status is Status.trained


def no_training(*_: object) -> None:
    raise AssertionError("trained, though it must not")


@pytest.mark.parametrize("left", [None, b"", b"{}", b'{"request": 1, "key": "xy"}'])
def test_without_what_it_began_with_a_round_is_over(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch, left: bytes | None
) -> None:
    crash_before_storing(setup, make_request(), monkeypatch)
    (begun,) = setup.replies.glob("*.begun")
    begun.unlink() if left is None else begun.write_bytes(left)
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    reply = Site(setup).train(make_request())
    assert (reply.status, reply.reason) == (Status.refused, Reason.bad_request)
    assert reply.spend is not None
    assert open_entries(setup) == 1


def test_a_round_that_fails_by_its_noise_fails_again_however_often_it_is_asked(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh noise in each attempt would answer once the noisy gradient is large enough."""
    reached: list[float] = []

    def fails_by_noise(trainee: Any, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
        train_round(trainee, cohort, recipe, seeds)
        reached.append(total_of(trainee.model))
        if reached[-1] <= reached[0]:
            raise FloatingPointError

    monkeypatch.setattr(classifier_module, "train_round", fails_by_noise)
    for _ in range(12):
        with pytest.raises(FloatingPointError):
            Site(setup).train(make_request())
    assert len(set(reached)) == 1


def total_of(model: Any) -> float:
    return float(sum(value.sum() for value in models.trainable_weights(model).values()))


def test_a_simulation_needs_no_file_to_repeat_itself(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = replace(setup, seeds=SimulatedSeeds(run_seed=3, site="hospital-1"))
    first = crash_before_storing(simulated, make_request(), monkeypatch)
    assert not list(setup.replies.glob("*"))
    assert digest(Site(simulated).train(make_request())) == digest(first)
