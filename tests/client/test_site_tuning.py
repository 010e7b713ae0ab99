"""A site trains the last model on for itself: charged once, kept at the site, in no reply."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import classifier as classifier_module
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.kept import Kept
from client.site import BadRequest, Site, event_of, tuned_path
from client.site_setup import SiteSetup
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig, Personal
from common.errors import BudgetExceeded, LedgerError
from common.messages import Recipe, Status, TrainReply, TrainRequest, Weights
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.cohort import patient_hashes
from common.seeds import SimulatedSeeds, SystemSeeds

RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-3,
    sampling_rate=0.5,
    noise_multiplier=2.0,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="sgd",
    learning_rate=0.01,
    physical_batch=8,
)
MODEL = SiteModel(
    config=ModelConfig(architecture="test_vit", patch_size=16),
    finetune=FinetuneConfig(mode=FinetuneMode.all),
    image_size=32,
    num_classes=2,
    seed=5,
)


@pytest.fixture
def setup(tmp_path: Path) -> SiteSetup:
    rng = np.random.default_rng(0)
    cohort = Cohort(
        images=rng.random((10, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 10),
        patients=np.repeat(np.arange(6), [1, 2, 3, 1, 2, 1]),
        num_patients=6,
        patient_ids=tuple(f"p{number}" for number in range(6)),
    )
    return SiteSetup(
        name="hospital-1",
        cohort=cohort,
        patient_hashes=patient_hashes(cohort.patient_ids, bytes(32)),
        ledger=tmp_path / "ledger.sqlite",
        replies=tmp_path / "replies",
        budget=Budget(epsilon=50.0, delta=1e-3, accountant="rdp"),
        model=MODEL,
        seeds=SystemSeeds(),
    )


def request(number: int = 1, layers: Personal = Personal.none, **changes: Any) -> TrainRequest:
    model = MODEL.build()
    return TrainRequest(
        run_id="run",
        round=number,
        recipe=replace(RECIPE, personal=layers.value, **changes),
        frozen_sha256=models.frozen_sha256(model),
        weights=models.shared_weights(model, layers),
    )


def entries(setup: SiteSetup) -> list[tuple[str, str, State]]:
    with setup.open_ledger(setup.budget.unit) as ledger:
        return [(e.request_id, e.purpose, e.state) for e in ledger.entries()]


def same(first: Weights, second: Weights) -> bool:
    return models.weights_sha256(first) == models.weights_sha256(second)


def test_tuning_is_one_event_and_stays_in_a_file_of_the_sites(setup: SiteSetup) -> None:
    asked = request(steps=3)
    tuned = Site(setup).tune(asked)
    assert tuned.keys() == asked.weights.keys()
    assert not same(tuned, asked.weights)
    assert entries(setup) == [("run/tune", "tune", State.committed)]
    with setup.open_ledger(setup.budget.unit) as ledger:
        assert list(ledger.events()) == [event_of(asked.recipe)]
    kept = Kept.read(tuned_path(setup.replies, "run"))
    assert kept.weights == {}, "only what is released stands there"
    assert same(kept.local, tuned)


def test_no_reply_carries_what_was_tuned(setup: SiteSetup) -> None:
    """The last round asked for again after tuning gets the bytes of before it."""
    site = Site(setup)
    asked = request(8)
    before = site.train(asked)
    tuned = site.tune(replace(asked, weights=_sound(before)))
    again = site.train(asked)
    assert same(_sound(again), _sound(before))
    assert not same(_sound(again), tuned)
    fields = {field.name for field in dataclasses.fields(TrainReply)}
    assert fields == {"site", "status", "num_patients", "reason", "spend", "weights"}
    assert [name for name, _, _ in entries(setup)] == ["run/8/train", "run/tune"]


def _sound(reply: TrainReply) -> Weights:
    assert reply.status is Status.trained
    assert reply.weights is not None
    return reply.weights


@pytest.mark.parametrize("restart", [False, True])
def test_tuned_once_in_a_run(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    site = Site(setup)
    first = site.tune(request(steps=3))
    monkeypatch.setattr(classifier_module, "train_round", _no_training)
    again = (Site(setup) if restart else site).tune(request(steps=3))
    assert same(again, first)
    assert len(entries(setup)) == 1
    with pytest.raises(LedgerError):
        site.tune(request(steps=4))  # another price under the same name


def _no_training(*_: object) -> None:
    raise AssertionError("trained, though it must not")


def test_a_crash_while_tuning_is_charged_once(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def die(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(classifier_module, "train_round", die)
        with pytest.raises(Crash):
            Site(setup).tune(request(steps=3))
    assert entries(setup) == [("run/tune", "tune", State.reserved)]
    Site(setup).tune(request(steps=3))
    assert entries(setup) == [("run/tune", "tune", State.committed)]


def test_what_is_lost_after_it_was_charged_is_not_tuned_anew(setup: SiteSetup) -> None:
    Site(setup).tune(request())
    tuned_path(setup.replies, "run").unlink()
    with pytest.raises(BadRequest):
        Site(setup).tune(request())


def test_tuning_past_the_budget_is_refused_and_costs_nothing(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_module, "train_round", _no_training)
    poor = replace(setup, budget=replace(setup.budget, epsilon=0.1))
    with pytest.raises(BudgetExceeded):
        Site(poor).tune(request())
    assert entries(poor) == []
    assert not tuned_path(setup.replies, "run").exists()


@pytest.mark.parametrize("wrong", [{"unit": "image"}, {"controlled": True, "momentum": 0.0}])
def test_what_tuning_is_not_made_for_is_refused(setup: SiteSetup, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Site(setup).tune(request(**wrong))
    assert not setup.ledger.exists()


def test_tuning_begins_with_the_last_model_and_the_sites_own_layers(setup: SiteSetup) -> None:
    """A rate too small to go anywhere: what comes out is what went in."""
    site = Site(setup)
    site.train(request(1, Personal.head, learning_rate=0.5))
    own = Kept.last_in(setup.replies, "run")
    assert own is not None
    assert own.local
    asked = request(1, Personal.head, learning_rate=1e-9)
    asked = replace(asked, weights={n: v + np.float32(0.25) for n, v in asked.weights.items()})
    tuned = site.tune(asked)
    assert tuned.keys() == asked.weights.keys() | own.local.keys()
    for name, value in {**asked.weights, **own.local}.items():
        np.testing.assert_allclose(tuned[name], value, atol=1e-6, err_msg=name)
    # The next round would still begin with the layers of the last one.
    after = Kept.last_in(setup.replies, "run")
    assert after is not None
    assert same(after.local, own.local)


def test_tuning_draws_other_noise_than_the_last_round(setup: SiteSetup, tmp_path: Path) -> None:
    """Noise a hundred times the clipped gradients: equal draws would give equal weights."""
    seeds = SimulatedSeeds(run_seed=1, site="hospital-1")
    noisy = request(8, noise_multiplier=100.0)
    setup = replace(setup, seeds=seeds)
    trained = _sound(Site(setup).train(noisy))
    tuned = Site(setup).tune(noisy)
    moves = [
        np.concatenate([(end[n] - value).ravel() for n, value in noisy.weights.items()])
        for end in (trained, tuned)
    ]
    assert abs(np.corrcoef(moves)[0, 1]) < 4 / np.sqrt(moves[0].size)
    other = replace(setup, ledger=tmp_path / "o.sqlite", replies=tmp_path / "o")
    assert same(Site(other).tune(noisy), tuned)  # and is repeatable where seeds are


def test_rounds_of_scaffold_end_with_tuning_without_it(setup: SiteSetup) -> None:
    site = Site(setup)
    site.train(request(1, controlled=True, momentum=0.0))
    assert site.tune(request(1, momentum=0.0))
    assert site.train(request(2, controlled=True, momentum=0.0)).status is Status.trained


def test_each_run_keeps_what_it_tuned(setup: SiteSetup) -> None:
    first = Site(setup).tune(request())
    Site(setup).tune(replace(request(), run_id="another"))
    assert same(Kept.read(tuned_path(setup.replies, "run")).local, first)
