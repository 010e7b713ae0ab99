"""One step: against Opacus, against brute force, and under attack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from client.dp.bookkeeping import Bookkeeper
from client.dp.gradients import (
    PatientOptimizer,
    PlainStep,
    PrivateStep,
    backward,
    check_engine,
    clip_factors,
)
from client.dp.patients import PatientBatch
from common.errors import UsageError

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


def private_step(model: nn.Module, *, sigma: float, clip: float = CLIP) -> PrivateStep:
    return PrivateStep(model, Bookkeeper(model), optimizer_of(model, sigma=sigma, clip=clip))


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
    step = PrivateStep(model, Bookkeeper(model), optimizer)
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


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("build", [tiny_vit, small_net])
def test_a_patient_whose_gradient_is_not_finite_counts_as_zero(build: Build, poison: float) -> None:
    counts = [2, 3, 1]
    batch = make_batch(counts)
    healthy = batch.only(torch.tensor([True, False, True]))
    batch.images[3, 0, 4:8, 4:8] = poison  # the second of three images of the second patient
    model = build()
    assert not bool(torch.isfinite(backward(model, Bookkeeper(model), batch)).all())
    step = private_step(model, sigma=0.3)
    ours = update_of(model, lambda: step.step([batch]))
    assert bool(torch.isfinite(ours).all())
    reference = build()
    alone = private_step(reference, sigma=0.3)
    assert_close(ours, update_of(reference, lambda: alone.step([healthy])))


def test_a_step_of_poisoned_patients_alone_is_noise() -> None:
    batch = make_batch([1, 2])
    batch.images.fill_(float("nan"))
    model = small_net()
    want = brute_force_update(model, [], sigma=0.3)
    assert_close(update_of(model, lambda: private_step(model, sigma=0.3).step([batch])), want)


def influence(model: nn.Module, counts: list[int], images: Tensor, labels: Tensor) -> float:
    """Norm of the sum before noise when the batch is one patient."""
    batch = PatientBatch(
        images=images,
        labels=labels,
        patients=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        num_patients=len(counts),
    )
    optimizer = optimizer_of(model, sigma=0.0, clip=1.0, expected=1.0)
    step = PrivateStep(model, Bookkeeper(model), optimizer)
    return float(update_of(model, lambda: step.step([batch])).norm()) / LEARNING_RATE


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.floats(-3, 4), st.integers(0, 9))
def test_one_patients_influence_is_at_most_the_clipping_norm(
    num_images: int, exponent: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = small_net()
    images = 10**exponent * torch.randn(num_images, 1, 32, 32, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 ** (exponent / 2))
    labels = torch.randint(0, 2, (num_images,), generator=generator)
    assert influence(model, [num_images], images, labels) <= 1.0 + 1e-4


@pytest.mark.parametrize(
    ("kind", "num_images", "shift"), [("linear", 2, 1e-4), ("linear", 8, 1e-7), ("norm", 8, 1e-7)]
)
@pytest.mark.parametrize("seed", range(20))
def test_images_that_cancel_hide_nothing_from_the_clipping(
    kind: str, num_images: int, shift: float, seed: int
) -> None:
    """Weights of the server's choice and nearly equal images with unequal labels.

    Each image's gradient is huge, their mean is small beside it, and what rounding leaves of the
    norm could be zero, while the gradient is thousands of times the clipping norm.
    """
    torch.manual_seed(seed)
    layer = {"linear": nn.Linear(64, 40), "norm": nn.LayerNorm(64)}[kind]
    head = nn.Linear(40 if kind == "linear" else 64, 2)
    model = nn.Sequential(nn.Flatten(), layer, head)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        head.bias.zero_()
        head.weight *= 1e7 if num_images == 2 else 1e8
    head.requires_grad_(False)
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    if num_images == 2:
        images = torch.cat([image, image + shift * torch.randn_like(image)])
    else:
        images = image + shift * torch.randn(num_images, 1, 8, 8)
    labels = torch.arange(num_images) % 2
    assert influence(model, [num_images], images, labels) <= 1.0 + 1e-4


def test_clip_factors_shorten_to_the_bound_and_never_lengthen() -> None:
    norms = torch.tensor([0.0, 1e-30, 0.5, 1.0, 2.0, 1e30])
    factors = clip_factors(norms, 1.0)
    assert bool((factors <= 1).all())
    assert bool((factors * norms <= 1.0).all())
    assert factors[:3].tolist() == [1.0, 1.0, 1.0]
    assert float(factors[4]) == pytest.approx(0.5, rel=1e-5)


class MixesImages(nn.Module):
    """Covered layers, but one image sees the other: no per-patient gradient exists."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(images.flatten(1)))
        return self.head(hidden - hidden.mean(0))


class UsesWeightsDirectly(MixesImages):
    """The layer is never called: the engine does not see how its weights are used."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.linear(images.flatten(1), self.first.weight, self.first.bias)
        return self.head(torch.tanh(hidden))


class PositionsFirst(MixesImages):
    """The batch is not the first dimension: positions would be taken for images."""

    share = torch.tensor([1.0, 3.0]).view(2, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.view(len(images), 1, -1).transpose(0, 1).expand(2, -1, -1)
        return self.head(torch.tanh(self.first(rows)) * self.share).sum(0)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (MixesImages, "first"),
        (UsesWeightsDirectly, r"first\.weight"),
        (PositionsFirst, "first|head|norm"),
    ],
)
def test_the_self_check_refuses_what_the_engine_gets_wrong(
    kind: type[nn.Module], words: str
) -> None:
    torch.manual_seed(0)
    model = kind()
    with pytest.raises(UsageError, match=words):
        check_engine(model, Bookkeeper(model), image_size=8, num_classes=2)


def test_the_self_check_refuses_a_model_that_cannot_take_the_pass() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 2))
    with pytest.raises(UsageError, match="does not cover this model"):
        check_engine(model, Bookkeeper(model), image_size=8, num_classes=2)


def test_the_self_check_leaves_no_trace() -> None:
    model = tiny_vit().train()
    before = flat(trainable(model))
    check_engine(model, Bookkeeper(model), image_size=32, num_classes=2)
    assert torch.equal(flat(trainable(model)), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
