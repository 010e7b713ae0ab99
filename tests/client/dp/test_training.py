"""A round: who is drawn, what is added, and how often."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from client.data.cohort import Cohort
from client.dp import training
from client.dp.engine import BookkeepingEngine
from client.dp.loader import Loader
from client.dp.patients import LargePatient, PatientBatch, Patients
from client.dp.training import RoundSeeds, Trainee, train_round
from common.config import AugmentationConfig
from common.messages import Recipe
from common.seeds import SimulatedSeeds

SIZE = 8


def make_cohort(counts: list[int], seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    num_images = sum(counts)
    return Cohort(
        images=rng.random((num_images, 1, SIZE, SIZE), dtype=np.float32),
        labels=rng.integers(0, 2, num_images),
        patients=rng.permutation(np.repeat(np.arange(len(counts)), counts)),
        num_patients=len(counts),
        patient_ids=tuple(f"p{number}" for number in range(len(counts))),
    )


def make_recipe(**changes: object) -> Recipe:
    base = Recipe(
        mechanism="dp_sgd",
        unit="patient",
        accountant="pld",
        delta=1e-5,
        sampling_rate=0.5,
        noise_multiplier=1.0,
        steps=3,
        max_grad_norm=1.0,
        images_per_patient=4,
        optimizer="sgd",
        learning_rate=1.0,
        physical_batch=32,
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def make_model(hidden: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIZE * SIZE, hidden), nn.Tanh(), nn.Linear(hidden, 2)
    )


def update_of(
    cohort: Cohort, recipe: Recipe, *, sampling: int = 1, noise: int = 2, hidden: int = 6
) -> torch.Tensor:
    """What a round adds to the weights, (d,)."""
    model = make_model(hidden)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    engine = BookkeepingEngine(model) if recipe.private else None
    train_round(
        Trainee(model=model, engine=engine),
        cohort,
        recipe,
        RoundSeeds(sampling=sampling, noise=noise),
    )
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


class Recorder:
    """Stands where gradients are taken, and keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[list[Patients]] = []

    def step(self, batches: Iterable[Patients]) -> None:
        self.steps.append(list(batches))


def drawn_by(
    monkeypatch: pytest.MonkeyPatch, cohort: Cohort, recipe: Recipe, seed: int = 1
) -> list[list[Patients]]:
    recorder = Recorder()
    monkeypatch.setattr(training, "_step_gradient", lambda *_: recorder)
    train_round(
        Trainee(model=make_model(), engine=None),
        cohort,
        recipe,
        RoundSeeds(sampling=seed, noise=0),
    )
    return recorder.steps


def variance_fits(counts: list[int], num_patients: int, rate: float) -> bool:
    """Two-sided, at five standard errors: are mean and variance those of a binomial?"""
    steps = len(counts)
    mean, variance = num_patients * rate, num_patients * rate * (1 - rate)
    off_mean = abs(np.mean(counts) - mean) / math.sqrt(variance / steps)
    off_variance = abs(np.var(counts) / variance - 1) / math.sqrt(2 / steps)
    return bool(off_mean < 5 and off_variance < 5)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_patients_are_drawn_by_independent_coins(
    monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    cohort, steps = make_cohort([1] * 60), 2000
    found = drawn_by(monkeypatch, cohort, make_recipe(sampling_rate=rate, steps=steps))
    counts = [sum(batch.num_patients for batch in batches) for batches in found]
    assert len(counts) == steps
    assert variance_fits(counts, 60, rate)
    # and the test can tell a wrong rate, and batches of a fixed size, from the right ones
    assert not variance_fits(counts, 60, rate * 1.1)
    assert not variance_fits([round(60 * rate)] * steps, 60, rate)


def test_every_patient_is_drawn_at_the_rate_however_many_images_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort, steps, rate = make_cohort([1, 9, 1, 30]), 3000, 0.3
    bright = replace(
        cohort, images=np.broadcast_to(cohort.patients[:, None, None, None] / 8, (41, 1, 2, 2))
    )
    times = np.zeros(4)
    for batches in drawn_by(monkeypatch, bright, make_recipe(sampling_rate=rate, steps=steps)):
        for batch in batches:
            for patient in range(batch.num_patients):
                values = (batch.images[batch.patients == patient] + 1) * 4
                assert len(values.unique()) == 1  # never two patients under one number
                times[round(float(values.flatten()[0]))] += 1
    error = math.sqrt(rate * (1 - rate) / steps)
    assert (abs(times / steps - rate) < 5 * error).all()


def test_images_of_a_patient_are_limited_and_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make_cohort([7, 2])
    recipe = make_recipe(sampling_rate=1.0, images_per_patient=3, steps=60)
    seen: set[float] = set()
    for (batch,) in drawn_by(monkeypatch, cohort, recipe):
        assert torch.bincount(batch.patients).tolist() == [3, 2]
        values = batch.images[:, 0, 0, 0].tolist()
        assert len(set(values)) == 5  # without replacement
        seen.update(values)
    assert len(seen) == 9


@pytest.mark.parametrize("physical_batch", [1, 3, 5, 1000])
def test_physical_batches_hold_whole_patients_up_to_the_limit(
    monkeypatch: pytest.MonkeyPatch, physical_batch: int
) -> None:
    cohort = make_cohort([1, 2, 3, 4, 1, 2])
    recipe = make_recipe(sampling_rate=1.0, physical_batch=physical_batch, steps=1)
    (batches,) = drawn_by(monkeypatch, cohort, recipe)
    whole = [batch for batch in batches if isinstance(batch, PatientBatch)]
    large = [patient for patient in batches if isinstance(patient, LargePatient)]
    assert all(len(patient.rows) > physical_batch for patient in large)
    assert sum(batch.num_patients for batch in whole) + len(large) == 6
    held = [piece for patients in batches for piece, _ in patients.pieces()]
    assert all(len(piece.labels) <= physical_batch for piece in held)
    assert sum(len(piece.labels) for piece in held) == 13


def test_a_large_patients_pieces_are_drawn_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe(
        sampling_rate=1.0, physical_batch=2, steps=1, augmentation_multiplicity=1000
    )
    made: list[int] = []
    make = Loader._batch

    def note(loader: Loader, group: list[np.ndarray]) -> PatientBatch:
        made.append(sum(map(len, group)) * loader.views)
        return make(loader, group)

    monkeypatch.setattr(Loader, "_batch", note)
    ((patient,),) = drawn_by(monkeypatch, make_cohort([4]), recipe)
    assert made == []
    pieces = patient.pieces()
    next(pieces)
    assert made == [2]
    next(pieces)
    assert made == [2, 2]
    assert sum(share for _, share in patient.pieces()) == pytest.approx(1.0)


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
def test_physical_batches_do_not_change_the_update(mechanism: str) -> None:
    cohort = make_cohort([1, 2, 3, 4, 1, 2])
    recipe = make_recipe(mechanism=mechanism, max_grad_norm=0.2, learning_rate=0.1)
    updates = [update_of(cohort, replace(recipe, physical_batch=size)) for size in (1, 3, 1000)]
    for other in updates[1:]:
        assert float((other - updates[0]).norm()) <= 1e-5 * float(updates[0].norm())


class CountingSGD(torch.optim.SGD):
    num_steps = 0

    def step(self, closure: object = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        CountingSGD.num_steps += 1
        super().step()


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
@pytest.mark.parametrize("rate", [1e-9, 0.05, 1.0])
def test_exactly_as_many_steps_as_promised_whatever_is_drawn(
    monkeypatch: pytest.MonkeyPatch, mechanism: str, rate: float
) -> None:
    monkeypatch.setattr(torch.optim, "SGD", CountingSGD)
    monkeypatch.setattr(CountingSGD, "num_steps", 0)
    recipe = make_recipe(mechanism=mechanism, sampling_rate=rate, steps=11)
    update_of(make_cohort([1] * 5), recipe)
    assert CountingSGD.num_steps == 11


def test_a_patient_without_images_adds_nothing() -> None:
    cohort = make_cohort([2, 1, 3])
    padded = replace(cohort, patients=cohort.patients + 1, num_patients=5)
    recipe = make_recipe(sampling_rate=1.0, noise_multiplier=1e-6, steps=1)
    scaled = 5 / 3 * update_of(padded, recipe)
    want = update_of(cohort, recipe)
    assert float((scaled - want).norm()) <= 1e-4 * float(want.norm())


def test_the_divisor_is_the_expected_number_of_patients_not_the_drawn_one() -> None:
    """The same patients are drawn at rates a hair apart in one seed; the update scales by 1/q."""
    cohort = make_cohort([1] * 8)
    draws = np.random.default_rng(1).random(8)
    low, high = np.sort(draws)[3:5]
    rates = [float(low + (high - low) * part) for part in (0.1, 0.9)]
    recipe = make_recipe(noise_multiplier=1e-6, steps=1)
    first, second = (update_of(cohort, replace(recipe, sampling_rate=rate)) for rate in rates)
    assert rates[1] / rates[0] > 1.02
    scaled = second * (rates[1] / rates[0])
    assert float((scaled - first).norm()) <= 1e-4 * float(first.norm())
    # four of eight were drawn: dividing by them would give another size
    gradient_sum = first * (rates[0] * 8)
    assert float(gradient_sum.norm()) <= 4.0
    assert abs(rates[0] * 8 - 4) > 0.05


def noise_of(sigma: float, clip: float, seed: int = 2) -> torch.Tensor:
    """(d,) the noise of one step in which nobody is drawn, before division."""
    recipe = make_recipe(sampling_rate=1e-9, noise_multiplier=sigma, max_grad_norm=clip, steps=1)
    update = update_of(make_cohort([1] * 4), recipe, noise=seed, hidden=600)
    return -update * (1e-9 * 4)


def scale_fits(noise: torch.Tensor, deviation: float) -> bool:
    """Two-sided chi-square test at five standard errors."""
    ratio = float(noise.double().square().mean()) / deviation**2
    return abs(ratio - 1) < 5 * math.sqrt(2 / len(noise))


@pytest.mark.parametrize(("sigma", "clip"), [(1.0, 1.0), (0.7, 0.1), (20.0, 3.0)])
def test_noise_has_the_claimed_scale(sigma: float, clip: float) -> None:
    noise = noise_of(sigma, clip)
    assert scale_fits(noise, sigma * clip)
    assert not scale_fits(noise, 1.1 * sigma * clip)
    assert not scale_fits(noise, 0.9 * sigma * clip)
    standard = noise.double() / (sigma * clip)
    assert abs(float(standard.mean())) < 5 / math.sqrt(len(noise))
    # the fourth moment of a Gaussian is 3, with variance 96 / d
    assert abs(float(standard.pow(4).mean()) - 3) < 5 * math.sqrt(96 / len(noise))


def test_noise_is_added_once_a_step_however_many_physical_batches() -> None:
    cohort = make_cohort([1] * 12)
    recipe = make_recipe(
        sampling_rate=1.0, noise_multiplier=50.0, steps=1, physical_batch=1, max_grad_norm=0.01
    )
    noise = -12 * update_of(cohort, recipe, hidden=600)
    assert scale_fits(noise, 0.5)


def test_noises_of_steps_add_up_independently() -> None:
    recipe = make_recipe(sampling_rate=1e-9, steps=4, optimizer="sgd")
    update = update_of(make_cohort([1] * 4), recipe, hidden=600) * (1e-9 * 4)
    # SGD with momentum 0.9: noise of step i of 4 enters (1 - 0.9^(5 - i)) / 0.1 times
    entered = [sum(0.9**k for k in range(4 - step)) for step in range(4)]
    assert scale_fits(update, math.sqrt(sum(value**2 for value in entered)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("hospital-1", 1), ("hospital-1", 2)),
        (("hospital-1", 1), ("hospital-2", 1)),
        (("hospital-1", 2), ("hospital-2", 1)),
    ],
)
def test_noises_of_two_rounds_and_of_two_sites_are_uncorrelated(
    first: tuple[str, int], second: tuple[str, int]
) -> None:
    noises = [
        noise_of(1.0, 1.0, SimulatedSeeds(run_seed=42, site=site).seed(number, "noise"))
        for site, number in (first, second)
    ]
    correlation = float(torch.corrcoef(torch.stack(noises))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(len(noises[0]))
    again = noise_of(1.0, 1.0, SimulatedSeeds(run_seed=42, site=first[0]).seed(first[1], "noise"))
    assert torch.equal(again, noises[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_same_seeds_repeat_a_round_and_each_seed_matters(optimizer: str) -> None:
    cohort, recipe = make_cohort([1, 2] * 5), make_recipe(optimizer=optimizer)
    update = update_of(cohort, recipe)
    assert torch.equal(update, update_of(cohort, recipe))
    assert not torch.equal(update, update_of(cohort, recipe, noise=3))
    assert not torch.equal(update, update_of(cohort, recipe, sampling=2))


def test_private_training_without_an_engine_is_refused() -> None:
    with pytest.raises(TypeError, match="needs an engine"):
        train_round(
            Trainee(model=make_model(), engine=None),
            make_cohort([1]),
            make_recipe(),
            RoundSeeds(sampling=1, noise=2),
        )


def test_training_without_privacy_learns() -> None:
    cohort = make_cohort([1, 2] * 10)
    cohort = replace(cohort, images=cohort.images * 0.5 + cohort.labels[:, None, None, None] * 0.5)
    cohort = replace(cohort, images=cohort.images.astype(np.float32))
    model = make_model()
    recipe = make_recipe(mechanism="none", steps=40, learning_rate=0.05)
    train_round(Trainee(model=model, engine=None), cohort, recipe, RoundSeeds(sampling=1, noise=2))
    with torch.no_grad():
        answer = model(torch.from_numpy(cohort.images) * 2 - 1).argmax(1).numpy()
    assert (answer == cohort.labels).mean() > 0.9


FLIPS = AugmentationConfig(flip_horizontal=True, rotation_degrees=20.0, brightness=0.2)


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
def test_views_that_are_all_alike_change_nothing(mechanism: str) -> None:
    """Views fold into the patient's mean: five of the same count as one."""
    cohort = make_cohort([1, 2, 3, 4])
    recipe = make_recipe(mechanism=mechanism, max_grad_norm=0.2, learning_rate=0.1)
    once = update_of(cohort, recipe)
    often = update_of(cohort, replace(recipe, augmentation_multiplicity=5))
    assert float((often - once).norm()) <= 1e-5 * float(once.norm())


@pytest.mark.parametrize("most_images", [None, 1, 6, 1000])
def test_views_stand_with_their_patient_and_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, most_images: int | None
) -> None:
    cohort = make_cohort([1, 2, 3, 1])
    named = replace(cohort, labels=cohort.patients)
    recorder = Recorder()
    monkeypatch.setattr(training, "_step_gradient", lambda *_: recorder)
    recipe = make_recipe(
        sampling_rate=1.0, steps=2, physical_batch=500, augmentation_multiplicity=3
    )
    trainee = Trainee(model=make_model(), engine=None, augmentation=FLIPS, most_images=most_images)
    train_round(trainee, named, recipe, RoundSeeds(sampling=1, noise=0))
    for batches in recorder.steps:
        found: dict[int, int] = {}
        views: list[torch.Tensor] = []
        for batch in batches:
            pieces = [piece for piece, _ in batch.pieces()]
            assert all(len(piece.labels) <= (most_images or 500) for piece in pieces)
            views += [view for piece in pieces for view in piece.images]
            for patient in range(pieces[0].num_patients):
                whose = torch.cat([p.labels[p.patients == patient] for p in pieces])
                assert len(whose.unique()) == 1
                assert int(whose[0]) not in found
                found[int(whose[0])] = len(whose)
        assert found == {0: 3, 1: 6, 2: 9, 3: 3}
        assert len({view.numpy().tobytes() for view in views}) > 15  # each changed on its own


def test_a_patients_views_add_at_most_the_clipping_norm() -> None:
    cohort = make_cohort([4])
    recipe = make_recipe(
        sampling_rate=1.0, noise_multiplier=1e-6, steps=1, augmentation_multiplicity=6
    )
    for clip in (1e-3, 0.1):
        model = make_model()
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        trainee = Trainee(model=model, engine=BookkeepingEngine(model), augmentation=FLIPS)
        changed = replace(recipe, max_grad_norm=clip)
        train_round(trainee, cohort, changed, RoundSeeds(sampling=1, noise=2))
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        length = float((after - before).double().norm())
        assert clip * (1 - 1e-3) <= length <= clip * (1 + 1e-3)


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per_layer"])
def test_a_sites_memory_does_not_change_the_update(clipping: str) -> None:
    cohort = make_cohort([1, 2, 3, 4, 1, 2])
    recipe = make_recipe(
        max_grad_norm=0.2, learning_rate=0.1, augmentation_multiplicity=2, clipping=clipping
    )
    updates = []
    for most_images in (None, 2, 5):
        model = make_model()
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        trainee = Trainee(
            model=model,
            engine=BookkeepingEngine(model),
            augmentation=AugmentationConfig(),
            most_images=most_images,
        )
        train_round(trainee, cohort, recipe, RoundSeeds(sampling=1, noise=2))
        updates.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    for other in updates[1:]:
        assert float((other - updates[0]).norm()) <= 1e-5 * float(updates[0].norm())


def test_without_a_seed_noise_is_the_systems_and_never_the_same() -> None:
    """Seeds of torch, known or set, have no part in it."""
    recipe = make_recipe(sampling_rate=1e-9, steps=1)
    noises: list[torch.Tensor] = []
    for _ in range(2):
        model = make_model(600)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        torch.manual_seed(0)
        train_round(
            Trainee(model=model, engine=BookkeepingEngine(model)),
            make_cohort([1] * 4),
            recipe,
            RoundSeeds(sampling=1, noise=None),
        )
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        noises.append((before - after) * 4e-9)
    for noise in noises:
        assert scale_fits(noise, 1.0)
    correlation = float(torch.corrcoef(torch.stack(noises))[0, 1])
    assert abs(correlation) < 4 / math.sqrt(len(noises[0]))


def test_a_round_leaves_torchs_own_generator_alone() -> None:
    model = make_model()
    trainee = Trainee(model=model, engine=BookkeepingEngine(model))
    state = torch.get_rng_state()
    train_round(trainee, make_cohort([1, 2]), make_recipe(), RoundSeeds(sampling=1, noise=2))
    assert torch.equal(torch.get_rng_state(), state)
