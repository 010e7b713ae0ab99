"""Canaries go through a real site, and what is seen of them is what the mechanism released."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.audit.canary import CanaryModel, Deck
from client.audit.game import Play, Subject, Table, play
from client.audit.system import System
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds, Trainee, train_round
from client.local_model import LocalTraining, ModelMismatch, Surroundings
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.errors import RunFailed, UsageError
from common.messages import Recipe
from common.privacy.accountants import PldAccountant
from common.privacy.events import PoissonGaussianSteps

RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=0.5,
    noise_multiplier=1e-4,
    steps=3,
    max_grad_norm=0.7,
    images_per_patient=3,
    optimizer="adam",
    learning_rate=0.01,
    physical_batch=16,
)
BARE = Subject(recipe=RECIPE, rounds=2, model=None)
DRAWN = 1e-2  # what is seen is a whole number, but for little noise


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def with_model(mode: FinetuneMode = FinetuneMode.all, **changes: Any) -> Subject:
    model = SiteModel(
        config=ModelConfig(architecture="test_vit", patch_size=16),
        finetune=FinetuneConfig(mode=mode),
        image_size=32,
        num_classes=2,
        seed=5,
    )
    recipe = replace(RECIPE, **changes)
    return Subject(recipe=recipe, rounds=2, model=model, image_shape=(1, 32, 32))


def played(subject: Subject, num_canaries: int = 24, system: System | None = None) -> Play:
    deck = subject.deck(num_canaries=num_canaries, num_ordinary=4)
    return play(subject, deck, system or System(), 1)


def assert_drawn_at_rate(one: Play, rate: float) -> None:
    """Canaries that are there show 1 where they are drawn and 0 elsewhere; others always 0."""
    assert np.abs(one.seen[~one.present]).max() < DRAWN
    assert np.abs(one.elsewhere).max() < DRAWN
    mine = one.seen[one.present]
    assert np.abs(mine - mine.round()).max() < DRAWN
    assert set(np.unique(mine.round())) == {0.0, 1.0}
    error = 4 * np.sqrt(rate * (1 - rate) / mine.size)
    assert abs(mine.mean() - rate) < error


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clipping": "automatic"},
        {"clipping": "per_layer"},
        {"precision": "bf16"},
        {"unit": "image", "images_per_patient": 1},
        {"augmentation_multiplicity": 2},
        {"optimizer": "sgd", "max_grad_norm": 30.0},
    ],
    ids=str,
)
def test_a_canary_adds_the_clipping_norm_whenever_it_is_drawn(changes: dict[str, Any]) -> None:
    assert_drawn_at_rate(played(with_model(**changes)), 0.5)


@pytest.mark.parametrize("mode", list(FinetuneMode))
def test_whatever_is_trained_of_the_model(mode: FinetuneMode) -> None:
    assert_drawn_at_rate(played(with_model(mode), num_canaries=16), 0.5)


def test_without_a_model_as_well() -> None:
    assert_drawn_at_rate(played(BARE, num_canaries=200), 0.5)


def test_noise_is_seen_as_it_is_claimed() -> None:
    one = played(replace(BARE, recipe=replace(RECIPE, noise_multiplier=2.5)), num_canaries=2000)
    for noise in (one.seen[~one.present], one.elsewhere):
        assert noise.std() == pytest.approx(2.5, rel=0.05)
        assert abs(noise.mean()) < 0.1
    assert (
        abs(np.corrcoef(one.seen[~one.present].ravel(), one.elsewhere[~one.present].ravel())[0, 1])
        < 0.05
    )


def test_the_claim_is_the_ledgers() -> None:
    one = played(replace(BARE, recipe=replace(RECIPE, noise_multiplier=2.0)))
    event = PoissonGaussianSteps(sampling_rate=0.5, noise_multiplier=2.0, steps=6)
    assert one.claim["epsilon"] == pytest.approx(PldAccountant().epsilon([event], 1e-5))
    assert (one.claim["delta"], one.claim["unit"], one.claim["accountant"]) == (
        1e-5,
        "patient",
        "pld",
    )


def test_coins_are_fair_and_differ_from_run_to_run() -> None:
    deck = BARE.deck(num_canaries=400, num_ordinary=1)
    first, other = (play(BARE, deck, System(), seed).present for seed in (1, 2))
    assert 150 < first.sum() < 250
    assert 150 < (first ^ other).sum() < 250


def test_an_opponent_takes_away_what_the_first_canary_adds() -> None:
    everyone = replace(BARE, recipe=replace(RECIPE, sampling_rate=1.0))
    table = Table(everyone, everyone.deck(num_canaries=1, num_ordinary=1, opposed=True), System())
    with_it, without = (table.play(np.array([there]), 3) for there in (True, False))
    assert with_it.shape == (1, 2, 3)
    assert np.abs(with_it).max() < DRAWN
    assert np.abs(without + 1).max() < DRAWN


def test_a_table_begins_each_run_anew() -> None:
    table = Table(BARE, BARE.deck(num_canaries=1, num_ordinary=1), System())
    first, other, again = (table.play(np.array([True]), seed) for seed in (1, 2, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nothing_is_left_behind(folder: Path) -> None:
    played(BARE)
    assert list(folder.iterdir()) == []


def test_nothing_is_left_behind_by_an_audit_that_is_interrupted(folder: Path) -> None:
    def interrupted(*_: object) -> None:
        assert list(folder.iterdir()) != []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        played(BARE, system=System(train=interrupted))
    assert list(folder.iterdir()) == []


def test_a_site_that_skips_a_step_is_no_site_to_audit() -> None:
    def lazily(trainee: Trainee, cohort: Cohort, recipe: Recipe, seeds: RoundSeeds) -> None:
        train_round(trainee, cohort, replace(recipe, steps=recipe.steps - 1), seeds)

    with pytest.raises(RunFailed, match="4 steps were taken, and 6 were asked for"):
        played(BARE, system=System(train=lazily))


class _Mixing:
    """A model whose images see each other."""

    def build(self) -> nn.Module:
        torch.manual_seed(0)

        class Mean(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x - x.mean(0)

        return nn.Sequential(nn.Flatten(), Mean(), nn.Linear(64, 2))

    def prepare(self, recipe: Recipe, around: Surroundings) -> LocalTraining:
        raise ModelMismatch


def test_a_model_that_private_training_does_not_cover_is_bad_input() -> None:
    mixing = Subject(recipe=RECIPE, rounds=1, model=_Mixing(), image_shape=(1, 8, 8))
    with pytest.raises(UsageError, match="does not cover this model"):
        played(mixing)


def deck(**changes: Any) -> Deck:
    base = BARE.deck(num_canaries=3, num_ordinary=2, opposed=True)
    return replace(base, **changes)


@pytest.mark.parametrize("blank", [False, True])
def test_absent_canaries_keep_their_place(blank: bool) -> None:
    cohort = deck().cohort(np.array([True, False, True]), 0, blank=blank)
    assert cohort.num_patients == 6
    has_images = np.bincount(cohort.patients, minlength=6)
    assert has_images.tolist() == [3, 3 * blank, 3, 3, 3, 3]


def test_losses_of_canaries_pull_at_their_own_weight_alone() -> None:
    mine = deck()
    model = CanaryModel(nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), mine)
    labels = torch.tensor([2, 4, 5, 6, 1])  # two canaries, the opponent, a blank, a patient

    def gradient(index: int) -> Callable[[nn.Parameter], float]:
        model.zero_grad()
        losses = mine.losses(model(torch.ones(5, 1, 1, 1)), labels)
        losses[index].backward()
        return lambda p: 0.0 if p.grad is None else float(p.grad.abs().sum())

    along = [gradient(index)(model.canaries.weight) for index in range(5)]
    assert along == [2**20, 2**20, 2**19, 0, 0]
    gradient(2)
    assert model.canaries.weight.grad is not None
    assert model.canaries.weight.grad[:, 0].tolist() == [-(2**19), 0, 0]
    assert model.inner is not None
    weights = list(model.inner.parameters())
    assert [sum(map(gradient(index), weights)) > 0 for index in range(5)] == [False] * 4 + [True]
