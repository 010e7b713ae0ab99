"""References know the patients they are given and no others; leaks are found, and chance is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.audit.shadows import Laboratory, People
from client.audit.site_audit import SiteAudit, SiteClaim, audit_site
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds, Trainee, train_round
from common import models
from common.config import AugmentationConfig, FinetuneConfig, FinetuneMode, ModelConfig
from common.messages import Recipe, Weights
from common.privacy.events import NonPrivateRelease

SIZE = 8
ROUNDS = 2
PLAIN = Recipe(
    mechanism="none",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=1.0,
    noise_multiplier=0.0,
    steps=60,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="adam",
    learning_rate=0.01,
    physical_batch=256,
)
PRIVATE = replace(PLAIN, mechanism="dp_sgd", noise_multiplier=30.0)
NOTHING_CLAIMED = SiteClaim(
    events=(NonPrivateRelease(reason="a test"),), delta=1e-5, accountant="pld"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def patients(num: int, seed: int) -> Cohort:
    """Two images each of noise, with labels that nothing in them tells: only memory helps."""
    rng = np.random.default_rng(seed)
    return Cohort(
        images=rng.random((2 * num, 1, SIZE, SIZE), dtype=np.float32),
        labels=np.repeat(rng.integers(2, size=num), 2),
        patients=np.repeat(np.arange(num), 2),
        num_patients=num,
        patient_ids=(),
    )


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 16), nn.ReLU(), nn.Linear(16, 2))


def trained(cohort: Cohort, recipe: Recipe = PLAIN) -> Weights:
    model = small_model()
    for number in range(ROUNDS):
        seeds = RoundSeeds(sampling=number, noise=number)
        train_round(Trainee(model=model, engine=None), cohort, recipe, seeds)
    return models.trainable_weights(model)


def laboratory(released: Weights, recipe: Recipe = PLAIN, **more: Any) -> Laboratory:
    return Laboratory(small_model(), released, recipe, ROUNDS, image_shape=(1, SIZE, SIZE), **more)


def audited(released: Weights, people: People, recipe: Recipe = PLAIN) -> SiteAudit:
    return audit_site(
        laboratory(released, recipe), people, NOTHING_CLAIMED, num_pairs=2, confidence=0.95, seed=7
    )


MEMBERS, OTHERS = patients(40, 1), patients(60, 2)
PEOPLE = People.joined(MEMBERS, OTHERS)


def test_members_come_first() -> None:
    assert PEOPLE.cohort.num_patients == 100
    assert PEOPLE.member.tolist() == [True] * 40 + [False] * 60
    assert PEOPLE.cohort.patients.tolist() == np.repeat(np.arange(100), 2).tolist()
    assert np.array_equal(PEOPLE.cohort.images[80:], OTHERS.images)


def test_a_part_of_the_patients_has_their_images_alone() -> None:
    chosen = np.arange(100) % 3 == 0
    part = PEOPLE.only(chosen)
    assert part.num_patients == 34
    rows = np.repeat(chosen, 2)
    assert np.array_equal(part.images, PEOPLE.cohort.images[rows])
    assert np.array_equal(part.labels, PEOPLE.cohort.labels[rows])
    assert part.patients.tolist() == np.repeat(np.arange(34), 2).tolist()


def test_a_model_that_remembers_is_caught() -> None:
    found = audited(trained(MEMBERS), PEOPLE)
    for name, one in found.strengths.items():
        assert one.auc > 0.9, name
        assert one.above_chance, name
    assert found.proof.epsilon > 0.3
    assert found.control is not None
    assert found.control.interval[0] < 0.5 < found.control.interval[1]


def test_a_model_that_was_never_trained_is_at_chance() -> None:
    """Two-sided: the interval of every attack holds one half."""
    found = audited(models.trainable_weights(small_model()), PEOPLE)
    for name, one in found.strengths.items():
        assert one.interval[0] < 0.5 < one.interval[1], name
        assert not one.above_chance, name
    assert found.proof.epsilon < 0.2


def test_a_model_of_other_patients_is_at_chance() -> None:
    found = audited(trained(patients(40, 3)), PEOPLE)
    for name, one in found.strengths.items():
        assert one.interval[0] < 0.5 < one.interval[1], name


def test_each_patient_is_unknown_to_one_of_each_pair() -> None:
    answers = laboratory(trained(MEMBERS)).ask(PEOPLE, num_pairs=3, seed=1)
    assert answers.absent.shape == (6, 200)
    for first in range(0, 6, 2):
        assert (answers.absent[first] ^ answers.absent[first + 1]).all()
    halves = answers.absent.reshape(6, 100, 2)
    assert (halves[..., 0] == halves[..., 1]).all()  # patients, not images
    for group in (slice(0, 40), slice(40, 100)):  # of members and others alike
        assert (halves[:, group, 0].mean(1) == 0.5).all()


def test_references_remember_whom_they_saw() -> None:
    """The other way round: a mix-up of who is absent would turn the sign."""
    answers = laboratory(trained(MEMBERS)).ask(PEOPLE, num_pairs=1, seed=1)
    seen = answers.references[~answers.absent].mean()
    assert seen < answers.references[answers.absent].mean() / 2


def test_the_same_seed_gives_the_same_answers() -> None:
    released = trained(MEMBERS)
    one, other = (laboratory(released).ask(PEOPLE, num_pairs=1, seed=5) for _ in range(2))
    again = laboratory(released)
    again.ask(PEOPLE, num_pairs=1, seed=6)  # leaves nothing behind
    third = again.ask(PEOPLE, num_pairs=1, seed=5)
    for answers in (other, third):
        assert np.array_equal(one.losses, answers.losses)
        assert np.array_equal(one.references, answers.references)


def test_references_of_a_private_run_have_its_noise() -> None:
    released = trained(MEMBERS)
    gaps = []
    for noise in (0.01, 30.0):
        recipe = replace(PRIVATE, noise_multiplier=noise)
        answers = laboratory(released, recipe).ask(PEOPLE, num_pairs=1, seed=1)
        seen = answers.references[~answers.absent].mean()
        gaps.append(answers.references[answers.absent].mean() - seen)
    assert gaps[0] > 1.0
    assert abs(gaps[1]) < 0.2


def test_each_image_is_a_patient_where_the_run_says_so() -> None:
    by_image = laboratory(trained(MEMBERS), replace(PLAIN, unit="image", images_per_patient=1))
    answers = by_image.ask(PEOPLE, num_pairs=1, seed=1)
    assert answers.references[~answers.absent].mean() < 0.2  # both images were seen


def test_without_references_there_is_the_loss_alone() -> None:
    found = audit_site(
        laboratory(trained(MEMBERS)), PEOPLE, NOTHING_CLAIMED, num_pairs=0, confidence=0.95, seed=7
    )
    assert set(found.strengths) == {"loss"}
    assert found.control is None


def test_progress_counts_every_round_of_every_reference() -> None:
    told: list[None] = []
    laboratory(trained(MEMBERS)).ask(PEOPLE, num_pairs=2, seed=1, done=lambda: told.append(None))
    assert len(told) == 4 * ROUNDS


def test_the_cost_of_a_reference_is_that_of_all_its_steps() -> None:
    """By a clock that counts how often it is looked at: a step takes one, and the answers one."""
    ticks = iter(range(100))
    mine = laboratory(trained(MEMBERS))
    assert mine.seconds_each(PEOPLE, lambda: next(ticks)) == 1 * ROUNDS * PLAIN.steps + 1


def test_measuring_the_cost_changes_no_answer() -> None:
    released = trained(MEMBERS)
    asked, measured = laboratory(released), laboratory(released)
    measured.seconds_each(PEOPLE, lambda: 0.0)
    one, other = (mine.ask(PEOPLE, num_pairs=1, seed=5) for mine in (asked, measured))
    assert np.array_equal(one.losses, other.losses)
    assert np.array_equal(one.references, other.references)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="names"):
        laboratory({"other": np.zeros(1, dtype=np.float32)})


def vision(mode: FinetuneMode) -> SiteModel:
    return SiteModel(
        config=ModelConfig(name="test_vit", architecture="test_vit", patch_size=16),
        finetune=FinetuneConfig(mode=mode, center=mode is FinetuneMode.head),
        image_size=32,
        num_classes=2,
        seed=1,
    )


@pytest.mark.parametrize("mechanism", ["none", "dp_sgd"])
def test_a_frozen_backbone_is_asked_once_for_each_image(tmp_path: Path, mechanism: str) -> None:
    """With views it cannot be; the answers of the released model are the same either way."""
    rng = np.random.default_rng(0)
    cohort = replace(MEMBERS, images=rng.random((80, 1, 32, 32), dtype=np.float32))
    people = People.joined(cohort, replace(cohort, images=cohort.images[::-1].copy()))
    site_model = vision(FinetuneMode.head)
    released = models.trainable_weights(site_model.build())
    released = {name: value + 0.1 for name, value in released.items()}
    recipe = replace(PRIVATE, mechanism=mechanism, steps=1)
    recipe = replace(recipe, noise_multiplier=1.0 if mechanism == "dp_sgd" else 0.0)
    heads, whole = (
        Laboratory(
            site_model.build(),
            released,
            recipe,
            1,
            image_shape=(1, 32, 32),
            augmentation=augmentation,
        )
        for augmentation in (AugmentationConfig(), AugmentationConfig(flip_horizontal=True))
    )
    assert (heads.takes_features, whole.takes_features) == (True, False)
    inputs = People(cohort=heads.inputs(people.cohort, tmp_path), num_members=people.num_members)
    assert inputs.cohort.images.shape == (160, 64)
    assert whole.inputs(people.cohort) is people.cohort
    one = heads.ask(inputs, num_pairs=1, seed=1)
    other = whole.ask(people, num_pairs=0, seed=1)
    assert one.losses == pytest.approx(other.losses, rel=1e-3)
    assert not np.allclose(one.references[0], one.losses)
