"""One step: against Opacus, against brute force, and under attack."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine, Engine
from client.dp.gradients import PatientOptimizer, PlainStep, PrivateStep
from client.dp.noise import SystemNoise
from client.dp.patients import PatientBatch

CLIP = 0.5
EXPECTED = 5.0
LEARNING_RATE = 0.1
Build = Callable[[], nn.Module]


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=16,
        embed_dim=24,
        depth=2,
        num_heads=3,
        in_chans=1,
        num_classes=2,
    )


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.LayerNorm(900), nn.Linear(900, 2)
    )


def make_batch(counts: list[int], seed: int = 0) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    num_images = sum(counts)
    return PatientBatch(
        images=torch.randn(num_images, 1, 32, 32, generator=generator),
        labels=torch.randint(0, 2, (num_images,), generator=generator),
        patients=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        num_patients=len(counts),
    )


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def optimizer_of(
    model: nn.Module, *, sigma: float, clip: float = CLIP, expected: float = EXPECTED
) -> PatientOptimizer:
    return PatientOptimizer(
        torch.optim.SGD(trainable(model), lr=LEARNING_RATE),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=expected,  # pyright: ignore[reportArgumentType]
        generator=torch.Generator().manual_seed(7),
    )


def private_step(
    model: nn.Module, *, sigma: float, clip: float = CLIP, engine: Engine | None = None
) -> PrivateStep:
    return PrivateStep(
        engine or BookkeepingEngine(model),
        Clipping(kind="flat", max_grad_norm=clip),
        optimizer_of(model, sigma=sigma, clip=clip),
    )


def flat(values: list[Tensor] | list[nn.Parameter]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in values])


def patient_gradients(model: nn.Module, batch: PatientBatch) -> list[list[Tensor]]:
    """Each patient's mean gradient by a backward pass of its own."""
    found: list[list[Tensor]] = []
    for patient in range(batch.num_patients):
        mine = batch.patients == patient
        loss = functional.cross_entropy(model(batch.images[mine]), batch.labels[mine])
        found.append(list(torch.autograd.grad(loss, trainable(model))))
    return found


def median_norm(model: nn.Module, batches: list[PatientBatch]) -> float:
    """A clipping norm that some patients pass and others do not."""
    norms = [flat(g).norm() for batch in batches for g in patient_gradients(model, batch)]
    return float(torch.stack(norms).quantile(0.5)) if norms else CLIP


def brute_force_update(
    model: nn.Module, batches: list[PatientBatch], *, sigma: float, clip: float = CLIP
) -> Tensor:
    """What a step must do to the weights, from the definition of DP-SGD."""
    total = torch.zeros_like(flat(trainable(model)))
    for batch in batches:
        for gradients in patient_gradients(model, batch):
            gradient = flat(gradients)
            total += gradient * min(1.0, clip / float(gradient.norm()))
    generator = torch.Generator().manual_seed(7)
    noise = [
        torch.normal(0.0, sigma * clip, p.shape, generator=generator) for p in model.parameters()
    ]
    return -LEARNING_RATE * (total + flat(noise)) / EXPECTED


def update_of(model: nn.Module, take: Callable[[], None]) -> Tensor:
    before = flat(trainable(model))
    take()
    return flat(trainable(model)) - before


def assert_close(got: Tensor, want: Tensor) -> None:
    assert float((got - want).norm()) <= 1e-5 * float(want.norm())


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # Opacus, of vmap
@pytest.mark.parametrize("build", [tiny_vit, small_net])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_a_step_is_opacus_step(build: Build, sigma: float) -> None:
    batch = make_batch([1] * 6)
    model = build()
    clip = median_norm(model, [batch])
    step = private_step(model, sigma=sigma, clip=clip)
    ours = update_of(model, lambda: step.step([batch]))

    reference = build()
    hooked = GradSampleModule(reference, batch_first=True, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(trainable(reference), lr=LEARNING_RATE),
        noise_multiplier=sigma,
        max_grad_norm=clip,
        expected_batch_size=EXPECTED,  # pyright: ignore[reportArgumentType]
        loss_reduction="mean",
        generator=torch.Generator().manual_seed(7),
    )

    def take() -> None:
        functional.cross_entropy(hooked(batch.images), batch.labels).backward()
        optimizer.step()

    assert_close(ours, update_of(reference, take))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=3))
def test_a_step_is_brute_force(groups: list[list[int]]) -> None:
    batches = [make_batch(counts, seed) for seed, counts in enumerate(groups)]
    model = small_net()
    clip = median_norm(model, batches)
    want = brute_force_update(model, batches, sigma=0.3, clip=clip)
    step = private_step(model, sigma=0.3, clip=clip)
    assert_close(update_of(model, lambda: step.step(batches)), want)


def test_no_batch_is_a_step_of_noise_alone() -> None:
    model = small_net()
    want = brute_force_update(model, [], sigma=0.3)
    assert float(want.norm()) > 0
    assert_close(update_of(model, lambda: private_step(model, sigma=0.3).step([])), want)


def test_nothing_is_carried_from_one_step_to_the_next() -> None:
    model, batch = small_net(), make_batch([2, 1])
    optimizer = optimizer_of(model, sigma=0.0)
    clipping = Clipping(kind="flat", max_grad_norm=CLIP)
    step = PrivateStep(BookkeepingEngine(model), clipping, optimizer)
    step.step([batch])
    assert not bool(update_of(model, lambda: step.step([])).any())


def test_plain_step_is_the_mean_over_patients_of_their_mean_gradient() -> None:
    model, batches = small_net(), [make_batch([2, 1]), make_batch([3], seed=1)]
    gradients = [flat(g) for b in batches for g in patient_gradients(model, b)]
    want = -LEARNING_RATE * torch.stack(gradients).sum(0) / EXPECTED
    sgd = torch.optim.SGD(trainable(model), lr=LEARNING_RATE)
    plain = PlainStep(model, sgd, expected_patients=EXPECTED)
    assert_close(update_of(model, lambda: plain.step(batches)), want)
    assert not bool(update_of(model, lambda: plain.step([])).any())


@pytest.mark.parametrize("at_once", [1, 3])
def test_pieces_of_a_patient_are_no_more_than_the_patient(in_pieces: Any, at_once: int) -> None:
    """With and without privacy, beside others."""
    others, large = make_batch([2, 1]), make_batch([7], seed=1)
    updates: list[Tensor] = []
    for patient in (large, in_pieces(large, at_once)):
        model, plain = small_net(), small_net()
        sgd = torch.optim.SGD(trainable(plain), lr=LEARNING_RATE)
        step = PlainStep(plain, sgd, expected_patients=EXPECTED)
        updates.append(update_of(plain, partial(step.step, [others, patient])))
        private = private_step(model, sigma=0.3, clip=median_norm(model, [others, large]))
        updates.append(update_of(model, partial(private.step, [others, patient])))
    assert_close(updates[2], updates[0])
    assert_close(updates[3], updates[1])


def test_a_step_of_poisoned_patients_alone_is_noise() -> None:
    batch = make_batch([1, 2])
    batch.images.fill_(float("nan"))
    model = small_net()
    want = brute_force_update(model, [], sigma=0.3)
    assert_close(update_of(model, lambda: private_step(model, sigma=0.3).step([batch])), want)


class Idle(nn.Module):
    """A layer that no image passes gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(1024, 2)
        self.idle = nn.Linear(100, 100)

    def forward(self, images: Tensor) -> Tensor:
        return self.used(images.flatten(1))


@pytest.mark.parametrize("counts", [[], [2], [1, 2]], ids=str)
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("kind", ["flat", "automatic", "per_layer"])
def test_a_weight_without_a_gradient_gets_noise_of_the_claimed_scale(
    counts: list[int], system: bool, kind: str
) -> None:
    torch.manual_seed(0)
    model = Idle()
    optimizer = optimizer_of(model, sigma=3.0)
    optimizer.system_noise = SystemNoise() if system else None
    step = PrivateStep(BookkeepingEngine(model), Clipping(kind=kind, max_grad_norm=CLIP), optimizer)
    before = flat(list(model.idle.parameters()))
    step.step([make_batch(counts)] if counts else [])
    noise = (before - flat(list(model.idle.parameters()))) * EXPECTED / LEARNING_RATE
    ratio = float(noise.double().square().mean()) / (3.0 * CLIP) ** 2
    assert abs(ratio - 1) < 5 * (2 / len(noise)) ** 0.5


def test_clipping_and_noise_that_disagree_are_refused() -> None:
    model = small_net()
    with pytest.raises(ValueError, match="agree on max_grad_norm"):
        PrivateStep(
            BookkeepingEngine(model),
            Clipping(kind="flat", max_grad_norm=2 * CLIP),
            optimizer_of(model, sigma=1.0),
        )


@pytest.mark.parametrize("system", [False, True])
def test_physical_batches_leave_nothing_but_sums(system: bool) -> None:
    """A sum that kept its graph would keep every batch of the step in memory."""
    model = small_net()
    optimizer = optimizer_of(model, sigma=0.3)
    optimizer.system_noise = SystemNoise() if system else None
    engine, clipping = BookkeepingEngine(model), Clipping(kind="flat", max_grad_norm=CLIP)
    optimizer.begin()
    for seed in range(3):
        optimizer.add(engine.clipped_sums(make_batch([1, 1], seed), clipping))
    assert not any(parameter.summed_grad.requires_grad for parameter in model.parameters())
    optimizer.release()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.requires_grad


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 5), st.sampled_from(["flat", "automatic", "per_layer"]))
def test_one_patient_more_moves_the_sum_by_at_most_the_clipping_norm(
    num_patients: int, kind: str
) -> None:
    """Clipped before they are summed, each counted once: with all against without one."""
    batch = make_batch([1 + number % 3 for number in range(num_patients)])
    batch.images.mul_(30.0)
    clipping = Clipping(kind=kind, max_grad_norm=CLIP)

    def total(chosen: Tensor) -> Tensor:
        model = small_net()
        optimizer = optimizer_of(model, sigma=0.0)
        step = PrivateStep(BookkeepingEngine(model), clipping, optimizer)
        update = update_of(model, lambda: step.step([batch.only(chosen)]))
        return -update * EXPECTED / LEARNING_RATE

    everyone = torch.ones(num_patients, dtype=torch.bool)
    lengths: list[float] = []
    for patient in range(num_patients):
        others = everyone.clone()
        others[patient] = False
        lengths.append(float((total(everyone) - total(others)).norm()))
    assert max(lengths) <= CLIP * (1 + 1e-4)
    if kind == "flat":  # all gradients are long, so each patient uses its bound
        assert min(lengths) >= CLIP * (1 - 1e-3)
