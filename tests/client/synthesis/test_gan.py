"""A round of a GAN: what a patient can change, what joins a step, and what follows from a seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine, Sums
from client.dp.gradients import PatientOptimizer, PlainStep
from client.dp.patients import PatientBatch
from client.dp.training import RoundSeeds
from client.synthesis.gan import GanTrainee, gan_engine, losses_for, made_up_pairs, train_gan_round
from common import models
from common.config import AugmentationConfig
from common.errors import UsageError
from common.generators.conditional_gan import ConditionalGan, build
from common.generators.discriminator import with_class
from common.generators.settings import GanSettings
from common.messages import Recipe

SETTINGS = GanSettings(width=1 / 32, generator_batch=4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_cohort(counts: list[int], seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    num_images = sum(counts)
    return Cohort(
        images=rng.random((num_images, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, num_images),
        patients=np.repeat(np.arange(len(counts)), counts),
        num_patients=len(counts),
        patient_ids=tuple(f"p{number}" for number in range(len(counts))),
    )


def without(cohort: Cohort, patient: int) -> Cohort:
    """The neighbour: the patient's data replaced by nothing, the number of patients the same."""
    keep = cohort.patients != patient
    return replace(
        cohort,
        images=cohort.images[keep],
        labels=cohort.labels[keep],
        patients=cohort.patients[keep],
    )


def make_recipe(**changes: object) -> Recipe:
    base = Recipe(
        mechanism="dp_sgd",
        unit="patient",
        accountant="pld",
        delta=1e-5,
        sampling_rate=0.5,
        noise_multiplier=1.0,
        steps=2,
        max_grad_norm=1.0,
        images_per_patient=4,
        optimizer="adam",
        learning_rate=1e-3,
        physical_batch=8,
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def make_gan(settings: GanSettings = SETTINGS) -> ConditionalGan:
    return build(settings, image_size=32, num_classes=2, seed=0)


def train(
    cohort: Cohort,
    recipe: Recipe,
    *,
    settings: GanSettings = SETTINGS,
    augmentation: AugmentationConfig | None = None,
    seeds: tuple[int, int] = (1, 2),
) -> ConditionalGan:
    gan = make_gan(settings)
    engine = None
    if recipe.private:
        engine = BookkeepingEngine(gan.discriminator, losses_of=losses_for(settings))
    trainee = GanTrainee(
        gan=gan,
        engine=engine,
        settings=settings,
        augmentation=augmentation or AugmentationConfig(),
    )
    train_gan_round(trainee, cohort, recipe, RoundSeeds(sampling=seeds[0], noise=seeds[1]))
    return gan


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Watch:
    """Keeps the batches that an engine gets, and the sums that get noise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[PatientBatch]] = []
        self.sums: list[Tensor] = []
        self.noises: list[Tensor] = []
        watch, release = self, PatientOptimizer.release
        clipped_sums, begin = BookkeepingEngine.clipped_sums, PatientOptimizer.begin

        def watched_begin(optimizer: PatientOptimizer) -> None:
            watch.batches.append([])
            begin(optimizer)

        def watched_sums(
            engine: BookkeepingEngine, batch: PatientBatch, clipping: Clipping
        ) -> Sums:
            watch.batches[-1].append(batch)
            return clipped_sums(engine, batch, clipping)

        def watched_release(optimizer: PatientOptimizer) -> None:
            parts = [getattr(p, "summed_grad", None) for p in optimizer.params]
            total = torch.cat(
                [
                    torch.zeros(p.numel()) if part is None else part.flatten().clone()
                    for p, part in zip(optimizer.params, parts, strict=True)
                ]
            )
            release(optimizer)
            noisy = torch.cat([p.grad.flatten() for p in optimizer.params if p.grad is not None])
            assert optimizer.expected_batch_size is not None
            watch.sums.append(total)
            watch.noises.append(noisy * optimizer.expected_batch_size - total)

        monkeypatch.setattr(PatientOptimizer, "begin", watched_begin)
        monkeypatch.setattr(BookkeepingEngine, "clipped_sums", watched_sums)
        monkeypatch.setattr(PatientOptimizer, "release", watched_release)

    def fakes(self, step: int) -> list[PatientBatch]:
        return [batch for batch in self.batches[step] if bool((batch.labels == 0).all())]

    def real(self, step: int) -> list[PatientBatch]:
        return [batch for batch in self.batches[step] if not bool((batch.labels == 0).any())]


@pytest.mark.parametrize("clip", [1e-3, 0.3])
def test_one_patient_moves_the_sum_before_noise_by_at_most_the_clipping_norm(
    monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    watch = Watch(monkeypatch)
    cohort = make_cohort([1, 3, 2, 1])
    loud = replace(cohort, images=cohort.images.copy())
    loud.images[cohort.patients == 1] = 40.0  # a patient unlike any other
    recipe = make_recipe(sampling_rate=1.0, steps=1, max_grad_norm=clip)
    # hinge: without smoothed targets, whose draws would be others for the patients after it
    settings = replace(SETTINGS, loss="hinge")
    for data in (loud, without(loud, 1)):
        train(data, recipe, settings=settings)
    assert [sum(b.num_patients for b in watch.real(step)) for step in (0, 1)] == [4, 3]
    moved = float((watch.sums[0].double() - watch.sums[1].double()).norm())
    assert 0 < moved <= clip * (1 + 1e-3)


@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_the_last_patient_alone_moves_the_sum_by_at_most_the_clipping_norm(
    monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """After the last patient no target is drawn, so that nothing but the patient differs."""
    watch = Watch(monkeypatch)
    cohort = make_cohort([1, 2, 3])
    settings = replace(SETTINGS, loss=loss)
    for clip in (1e-3, 0.05):
        recipe = make_recipe(sampling_rate=1.0, steps=1, max_grad_norm=clip)
        for data in (cohort, without(cohort, 2)):
            train(data, recipe, settings=settings)
        moved = float((watch.sums[-2].double() - watch.sums[-1].double()).norm())
        assert clip * (1 - 1e-2) <= moved <= clip * (1 + 1e-3)


def test_each_generated_image_is_clipped_like_a_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    recipe = make_recipe(sampling_rate=1e-9, steps=1, max_grad_norm=1e-3)
    train(make_cohort([1] * 6), recipe)
    assert len(watch.fakes(0)) == 1
    assert 0.99e-3 <= float(watch.sums[0].norm()) <= 1.001e-3


@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("physical_batch", [3, 100])
def test_the_number_of_generated_images_never_depends_on_who_was_drawn(
    monkeypatch: pytest.MonkeyPatch, rate: float, physical_batch: int
) -> None:
    watch = Watch(monkeypatch)
    recipe = make_recipe(
        sampling_rate=rate, steps=6, physical_batch=physical_batch, noise_multiplier=0.1
    )
    train(make_cohort([1] * 24), recipe)
    counts = [sum(len(b.labels) for b in watch.fakes(step)) for step in range(6)]
    drawn = {sum(b.num_patients for b in watch.real(step)) for step in range(6)}
    assert counts == [max(1, round(24 * rate))] * 6
    assert len(drawn) > 1 or rate in {1e-9, 1.0}
    for step in range(6):
        for batch in watch.fakes(step):
            assert batch.num_patients == len(batch.labels) <= physical_batch


def test_generated_images_of_the_first_step_do_not_depend_on_patients_or_their_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch(monkeypatch)
    cohort = make_cohort([1, 2, 1, 1])
    other = replace(make_cohort([3, 1, 1, 1], seed=5), labels=np.ones(6, dtype=np.int64))
    for data in (cohort, without(cohort, 1), other):
        train(data, make_recipe(sampling_rate=1.0, steps=1))
    first, *others = (torch.cat([b.images for b in watch.fakes(step)]) for step in range(3))
    assert all(torch.equal(first, images) for images in others)


def test_classes_of_generated_images_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    cohort = replace(make_cohort([1] * 60), labels=np.zeros(60, dtype=np.int64))
    train(cohort, make_recipe(sampling_rate=1.0, steps=5, physical_batch=100))
    classes = torch.cat([b.images[:, 1, 0, 0] for s in range(5) for b in watch.fakes(s)])
    assert set(classes.tolist()) == {0.0, 1.0}
    assert abs(float(classes.mean()) - 0.5) < 5 * 0.5 / math.sqrt(len(classes))


def test_real_images_come_with_their_class_and_a_smoothed_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch(monkeypatch)
    cohort = make_cohort([2] * 30)
    train(cohort, make_recipe(sampling_rate=1.0, steps=1, physical_batch=100))
    (batch,) = watch.real(0)
    assert batch.num_patients == 30
    assert batch.images[:, 1, 0, 0].tolist() == cohort.labels.tolist()
    assert torch.allclose(batch.images[:, 0], torch.from_numpy(cohort.images[:, 0]) * 2 - 1)
    targets = batch.labels.flatten()
    assert 0.7 <= float(targets.min()) < 0.76
    assert 1.14 < float(targets.max()) <= 1.2


def scale_fits(noise: Tensor, deviation: float) -> bool:
    """Two-sided chi-square test at five standard errors."""
    ratio = float(noise.double().square().mean()) / deviation**2
    return abs(ratio - 1) < 5 * math.sqrt(2 / len(noise))


def test_noise_is_added_once_a_step_at_the_claimed_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    recipe = make_recipe(
        steps=2, noise_multiplier=3.0, max_grad_norm=0.2, physical_batch=2, sampling_rate=0.9
    )
    train(make_cohort([1] * 8), recipe)
    assert len(watch.noises) == 2
    for noise in watch.noises:
        assert scale_fits(noise, 0.6)
        assert not scale_fits(noise, 0.6 * 1.1)
        assert not scale_fits(noise, 0.6 / 1.1)
    correlation = float(torch.corrcoef(torch.stack(watch.noises))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(len(watch.noises[0]))


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
def test_a_step_in_which_nobody_is_drawn_is_a_step(mechanism: str) -> None:
    recipe = make_recipe(mechanism=mechanism, sampling_rate=1e-9, steps=3)
    steps: list[int] = []
    gan = make_gan()
    before = flat(gan.discriminator)
    engine = BookkeepingEngine(gan.discriminator) if recipe.private else None
    trainee = GanTrainee(gan=gan, engine=engine, settings=SETTINGS, on_step=steps.append)
    train_gan_round(trainee, make_cohort([1] * 5), recipe, RoundSeeds(sampling=1, noise=2))
    assert steps == [1, 2, 3]
    assert not torch.equal(flat(gan.discriminator), before)


@pytest.mark.parametrize("mechanism", ["dp_sgd", "none"])
def test_the_same_seeds_repeat_a_round_and_each_seed_matters(mechanism: str) -> None:
    cohort, recipe = make_cohort([1, 2, 1, 1]), make_recipe(mechanism=mechanism)
    state = torch.get_rng_state()
    first, same, sampling, noise = (
        flat(train(cohort, recipe, seeds=seeds)) for seeds in ((1, 2), (1, 2), (3, 2), (1, 3))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, sampling)
    assert torch.equal(first, noise) is not recipe.private


@pytest.mark.parametrize(("every", "taken"), [(1, 6), (2, 3), (4, 1)])
def test_the_generator_steps_once_every_so_many_discriminator_steps(
    monkeypatch: pytest.MonkeyPatch, every: int, taken: int
) -> None:
    steps: list[float] = []
    adam_step = torch.optim.Adam.step

    def counted(optimizer: torch.optim.Adam, closure: object = None) -> None:
        steps.append(optimizer.param_groups[0]["lr"])
        adam_step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    settings = replace(SETTINGS, steps_per_generator_step=every)
    train(make_cohort([1] * 4), make_recipe(steps=6), settings=settings)
    assert steps.count(settings.generator_learning_rate) == taken
    assert len(steps) == 6 + taken


def test_the_average_follows_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, ema=0.75)
    start = flat(make_gan(settings).generator)
    gan = train(make_cohort([1] * 4), make_recipe(steps=1), settings=settings)
    assert gan.average is not None
    assert torch.allclose(flat(gan.average), 0.75 * start + 0.25 * flat(gan.generator), atol=1e-7)
    assert not torch.equal(flat(gan.generator), start)


def test_a_generator_step_leaves_the_discriminator_as_the_mechanism_released_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(SETTINGS, generator_learning_rate=0.5)
    loud = train(make_cohort([1] * 4), make_recipe(steps=1), settings=settings)
    quiet = train(make_cohort([1] * 4), make_recipe(steps=1))
    assert torch.equal(flat(loud.discriminator), flat(quiet.discriminator))
    assert not torch.equal(flat(loud.generator), flat(quiet.generator))


def test_without_privacy_the_step_is_the_plain_gradient_of_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[PatientBatch] = []
    step = PlainStep.step

    def watched(self: PlainStep, given: Iterable[PatientBatch]) -> None:
        batches.extend(given)
        step(self, batches)

    monkeypatch.setattr(PlainStep, "step", watched)
    recipe = make_recipe(mechanism="none", sampling_rate=1.0, steps=1)
    cohort = make_cohort([1, 3])
    gan, fresh = train(cohort, recipe), make_gan()
    losses = torch.zeros(())
    for batch in batches:
        logits = fresh.discriminator(batch.images).flatten()
        target = batch.labels.flatten()
        each = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        losses = losses + (each * batch.image_weights()).sum() / 2
    optimizer = torch.optim.Adam(fresh.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    losses.backward()
    optimizer.step()
    assert torch.allclose(flat(fresh.discriminator), flat(gan.discriminator), atol=1e-5)


@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_it_learns_without_privacy(loss: str) -> None:
    """Class 0 is bright on the left and class 1 on the right, and so become the images."""
    cohort = make_cohort([1] * 32)
    side = (np.arange(32)[None, None, None] >= 16) == cohort.labels[:, None, None, None]
    cohort = replace(cohort, images=(0.1 * cohort.images + 0.8 * side).astype(np.float32))
    settings = GanSettings(width=1 / 16, loss=loss, generator_learning_rate=4e-3)
    recipe = make_recipe(
        mechanism="none", steps=60, physical_batch=64, learning_rate=2e-3, sampling_rate=0.5
    )
    gan = train(cohort, recipe, settings=settings)
    labels = torch.arange(40) % 2
    images = gan.images(labels, torch.Generator().manual_seed(0)).detach()
    right = images[..., 16:].mean(dim=(1, 2, 3)) - images[..., :16].mean(dim=(1, 2, 3))
    assert float(right[labels == 1].mean() - right[labels == 0].mean()) > 0.2


@pytest.mark.parametrize("loss", ["bce", "hinge"])
@pytest.mark.parametrize("engine", ["bookkeeping", "opacus_hooks"])
def test_the_engine_covers_the_discriminator(loss: str, engine: str) -> None:
    gan, recipe = make_gan(), make_recipe(engine=engine)
    settings = replace(SETTINGS, loss=loss)
    if loss == "hinge" and engine != "bookkeeping":
        with pytest.raises(UsageError, match="book-keeping"):
            gan_engine(gan, recipe, settings)
        return
    assert gan_engine(gan, recipe, settings)


def test_the_papers_width_is_covered_too() -> None:
    gan = make_gan(GanSettings(width=0.25))
    assert gan_engine(gan, make_recipe(), GanSettings(width=0.25))


class Mixing(nn.Module):
    """A discriminator that looks at the whole batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        return logits - logits.mean()


def test_a_discriminator_that_mixes_images_is_refused() -> None:
    gan = make_gan()
    gan.discriminator = Mixing(gan.discriminator)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UsageError):
        gan_engine(gan, make_recipe(), SETTINGS)


def test_what_stands_for_patients_has_both_planes() -> None:
    batch = made_up_pairs(make_gan())
    assert batch.images.shape[1:] == (2, 32, 32)
    assert batch.labels.shape == (len(batch.images), 1)


def test_hinge_losses() -> None:
    losses_of = losses_for(replace(SETTINGS, loss="hinge"))
    logits = torch.tensor([[0.5], [2.0], [0.5], [-2.0]])
    targets = torch.tensor([[0.9], [1.1], [0.0], [0.0]])
    assert losses_of(logits, targets).tolist() == [0.5, 0.0, 1.5, 0.0]


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"optimizer": "sgd"}, SETTINGS, "adam"),
        ({"steps": 3}, replace(SETTINGS, steps_per_generator_step=4), "never take one"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    changes: dict[str, object], settings: GanSettings, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        train(make_cohort([1]), make_recipe(**changes), settings=settings)


def test_several_findings_for_each_image_are_refused() -> None:
    cohort = replace(make_cohort([1, 1]), labels=np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(UsageError, match="one class"):
        train(cohort, make_recipe())


def test_weights_stay_finite_and_travel() -> None:
    gan = train(make_cohort([1, 2]), make_recipe())
    weights = models.trainable_weights(gan)
    assert all(np.isfinite(value).all() for value in weights.values())
    assert with_class(torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.int64)).shape[1] == 2
