"""Models: the same on both sides, refused where they mix patients, named by their bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig
from common.errors import UsageError

HEAD = {"head.weight", "head.bias"}


def make_config(**changes: object) -> ModelConfig:
    fields: dict[str, object] = {"architecture": "test_vit", "patch_size": 16, **changes}
    return ModelConfig(**fields)  # pyright: ignore[reportArgumentType]


def build(
    seed: int = 0,
    mode: FinetuneMode = FinetuneMode.all,
    num_classes: int = 2,
    config: ModelConfig | None = None,
) -> nn.Module:
    return models.build(
        config or make_config(),
        FinetuneConfig(mode=mode),
        image_size=32,
        num_classes=num_classes,
        seed=seed,
    )


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_state_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = models.weights_sha256(models.trainable_weights(build(7)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert models.weights_sha256(models.trainable_weights(build(7))) == first
    assert models.weights_sha256(models.trainable_weights(build(8))) != first


def test_a_model_takes_grey_images_and_gives_logits() -> None:
    assert build(num_classes=3)(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_batch_normalisation_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"layer stem\.bn is a BatchNorm"):
        build(config=make_config(architecture="test_byobnet", patch_size=None))


@pytest.mark.parametrize("architecture", ["no_such_model", "test_resnet"])
def test_what_cannot_be_built_is_the_users_to_mend(architecture: str) -> None:
    with pytest.raises(UsageError, match=f"model.architecture={architecture}"):
        build(config=make_config(architecture=architecture, patch_size=None))


def test_what_is_trained_is_all_or_the_head() -> None:
    everything = build()
    assert set(models.trainable_weights(everything)) == {
        n for n, _ in everything.named_parameters()
    }
    assert set(models.trainable_weights(build(mode=FinetuneMode.head))) == HEAD


def _saved(tmp_path: Path, state: dict[str, Tensor]) -> ModelConfig:
    path = tmp_path / "public.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return make_config(weights=path, weights_public="made in a test")


def test_public_weights_are_loaded_and_a_head_of_another_size_is_left_out(tmp_path: Path) -> None:
    public = build(seed=1, num_classes=5)
    model = build(seed=2, config=_saved(tmp_path, public.state_dict()))
    own = build(seed=2).state_dict()
    for name, tensor in model.state_dict().items():
        source = own if name in HEAD else public.state_dict()
        assert torch.equal(tensor, source[name]), name


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "norm.bias", "cls_token"])
def test_public_weights_with_a_tensor_missing_or_misshapen_are_refused(
    tmp_path: Path, name: str
) -> None:
    state = build().state_dict()
    without = {key: tensor for key, tensor in state.items() if key != name}
    with pytest.raises(UsageError, match=name):
        build(config=_saved(tmp_path, without))
    with pytest.raises(UsageError, match=name):
        build(config=_saved(tmp_path, {**state, name: torch.zeros(2, 2)}))


def test_public_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    config = make_config(weights=path, weights_public="made in a test")
    with pytest.raises(UsageError, match="no such file"):
        build(config=config)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(UsageError, match="not a safetensors file"):
        build(config=config)


def test_weights_go_out_and_in_unchanged() -> None:
    source, target = build(seed=1), build(seed=2)
    weights = models.trainable_weights(source)
    models.load_trainable_weights(target, weights)
    assert models.weights_sha256(models.trainable_weights(target)) == models.weights_sha256(weights)
    weights["head.bias"] += 1  # copies: the model does not follow
    assert not np.array_equal(models.trainable_weights(source)["head.bias"], weights["head.bias"])
    assert not np.array_equal(models.trainable_weights(target)["head.bias"], weights["head.bias"])


def test_weights_that_do_not_fit_are_refused() -> None:
    model = build(mode=FinetuneMode.head)
    good = models.trainable_weights(model)
    for bad, words in (
        ({}, "differ in 2 names"),
        ({**good, "more": np.zeros(1, np.float32)}, "differ in 1 names"),
        ({**good, "head.bias": np.zeros((2, 1), np.float32)}, r"head\.bias: shape"),
        ({**good, "head.bias": np.array([0, np.nan], np.float32)}, r"head\.bias: not finite"),
        ({**good, "head.bias": np.array([0, np.inf], np.float32)}, r"head\.bias: not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            models.load_trainable_weights(model, bad)


def test_the_frozen_hash_changes_with_frozen_weights_only() -> None:
    model = build(mode=FinetuneMode.head)
    before = models.frozen_sha256(model)
    with torch.no_grad():
        model.get_parameter("head.weight").add_(1)
    assert models.frozen_sha256(model) == before
    with torch.no_grad():
        model.get_parameter("cls_token").view(-1)[0] += 1e-6
    assert models.frozen_sha256(model) != before
    assert models.frozen_sha256(build(1)) == models.frozen_sha256(build(2))  # nothing is frozen
    buffered = build()
    buffered.register_buffer("scale", torch.ones(1))
    assert models.frozen_sha256(buffered) != models.frozen_sha256(build())


def test_the_hash_of_weights_sees_names_shapes_types_and_values_but_not_order() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(1, np.float32)}
    known = models.weights_sha256(base)
    assert models.weights_sha256(dict(reversed(base.items()))) == known
    for other in (
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].view(np.int32), "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"]},
    ):
        assert models.weights_sha256(other) != known
