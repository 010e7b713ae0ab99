"""timm models: how they are built, which weights are trained, and what they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from common.centering import CenteredHead, center_head, measure_center
from common.config import FinetuneConfig, ModelConfig, Personal
from common.errors import UsageError
from common.finetuning import mark_trainable
from common.messages import Weights
from common.slices import SliceAttention, SlicePool

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # pyright: ignore[reportPrivateUsage]


def build(
    config: ModelConfig,
    finetune: FinetuneConfig,
    *,
    image_size: int,
    num_classes: int,
    seed: int,
    depth: int | None = None,
) -> nn.Module:
    """A model for grey images (B, 1, S, S) → logits (B, C), with trainable weights marked.

    With ``depth`` it is one for volumes (B, 1, D, S, S); see `common.slices.SliceAttention`.

    The same arguments give the same weights on one machine. Normalisation layers that mix
    images of a batch (BatchNorm) are refused: one patient would reach another's gradient.

    Raises:
        UsageError: for an unknown architecture, a size it cannot take, or BatchNorm.
    """
    features_only = 0 if depth is not None else num_classes
    options: dict[str, Any] = {"in_chans": 1, "num_classes": features_only, "img_size": image_size}
    for name in ("patch_size", "window_size"):
        if getattr(config, name) is not None:
            options[name] = getattr(config, name)
    if config.weights is not None:
        options |= _weights_options(config, options)
    model = _create(config, options, seed)
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in modules:
        if isinstance(module, _BATCH_NORMS):
            raise UsageError(
                f"model.architecture={config.architecture}: layer {name} is a BatchNorm, which "
                "mixes patients of a batch; choose a model with LayerNorm or GroupNorm"
            )
    if depth is not None:
        model = _of_volumes(model, depth=depth, num_classes=num_classes, seed=seed)
    if finetune.center:
        center_head(model)
    size = (image_size, image_size)
    with _seeded(seed):
        mark_trainable(
            model,
            finetune,
            head=_head_names(model),
            blocks=_blocks(model),
            example=torch.zeros((1, 1, *size) if depth is None else (1, 1, depth, *size)),
        )
    begun: set[str] = set() if config.start is None else _lay_over(model, config.start)
    if finetune.center and not any(name.endswith(".center") for name in begun):
        measure_center(model, image_size)
    return model


def _lay_over(model: nn.Module, path: Path) -> set[str]:
    """Put the weights in ``path`` in the place of the model's; returns their names."""
    try:
        found = cast("dict[str, Tensor]", cast("Any", safetensors_torch).load_file(path))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"model.start={path}: not a safetensors file ({error})") from error
    mine = model.state_dict()
    for name, tensor in found.items():
        if name not in mine or mine[name].shape != tensor.shape:
            raise UsageError(f"model.start={path}: {name} does not fit this model")
    model.load_state_dict(found, strict=False)
    return set(found)


def _of_volumes(backbone: nn.Module, *, depth: int, num_classes: int, seed: int) -> nn.Module:
    num_features = cast("int", cast("Any", backbone).num_features)
    with _seeded(seed):
        pool = SlicePool(num_features=num_features, depth=depth, num_classes=num_classes)
    return SliceAttention(backbone, pool)


def _blocks(model: nn.Module) -> list[list[str]]:
    """Names of weights from the input to the output, block by block; the head last."""
    if isinstance(model, SliceAttention):
        inner = [[f"backbone.{name}" for name in block] for block in _blocks(model.backbone)]
        own = [name for name, _ in model.named_parameters() if not name.startswith("backbone.")]
        return [*inner, own]
    matcher = cast("Any", model).group_matcher(coarse=False)
    group = cast("Callable[..., dict[int, list[str]]]", cast("Any", timm.models).group_parameters)
    groups = group(model, matcher)
    return [groups[key] for key in sorted(groups)]


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Draws of torch inside depend on ``seed``, those after it do not."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _create(config: ModelConfig, options: Mapping[str, Any], seed: int) -> nn.Module:
    with _seeded(seed):
        try:
            return _created(config.architecture, options)
        except (RuntimeError, TypeError, AssertionError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            given = {k: v for k, v in options.items() if not k.startswith("pretrained")}
            source = f" with model.weights={config.weights}" if "pretrained" in options else ""
            raise UsageError(
                f"model.architecture={config.architecture} cannot be built from {given}{source}: "
                f"{reason}"
            ) from error


def _created(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Convolutional models take any size and no ``img_size``."""
    try:
        return timm.create_model(architecture, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(
            architecture, **{k: v for k, v in options.items() if k != "img_size"}
        )


# What files were found to hold, so that a process that builds many models looks once.
_FILES: dict[tuple[object, ...], dict[str, Any]] = {}


def _weights_options(config: ModelConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of timm that load a file: it adapts channels, positions and windows itself.

    A head with our number of classes is kept, any other is drawn anew.
    """
    path = config.weights
    assert path is not None
    if not path.is_file():
        raise UsageError(f"model.weights={path}: no such file")
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size, config.architecture, *sorted(options.items()))
    if key not in _FILES:
        source = _source(config, _create(config, options, seed=0), options["num_classes"])
        found = {"pretrained": True, "pretrained_cfg_overlay": source}
        first, second = (_create(config, {**options, **found}, seed) for seed in (0, 1))
        _check_all_loaded(config, first, second)
        _FILES[key] = found
    return _FILES[key]


def _source(config: ModelConfig, model: nn.Module, num_classes: int) -> dict[str, Any]:
    head = _head_names(model)
    try:
        with cast("Any", safe_open(str(config.weights), framework="pt")) as file:
            names = set(cast("list[str]", file.keys()))
            rows = [int(file.get_slice(name).get_shape()[0]) for name in head & names]
    except SafetensorError as error:
        raise UsageError(
            f"model.weights={config.weights}: not a safetensors file ({error})"
        ) from error
    keeps_head = bool(rows) and head <= names and set(rows) == {num_classes}
    return {"file": str(config.weights), "num_classes": num_classes if keeps_head else 0}


def _check_all_loaded(config: ModelConfig, model: nn.Module, other: nn.Module) -> None:
    """Weights that depend on the seed did not come from the file; only the head may."""
    head, drawn = _head_names(model), other.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in head and not torch.equal(tensor, drawn[name]):
            raise UsageError(f"model.weights={config.weights}: {name} is missing")


def _head_names(model: nn.Module) -> set[str]:
    """Names of the weights of the head: of both of a distilled transformer, pooling included.

    A model that classifies nothing, such as a generator, has none.
    """
    if isinstance(model, SliceAttention):
        return set(_blocks(model)[-1])
    if not hasattr(model, "get_classifier"):
        return set()
    head = cast("nn.Module | tuple[nn.Module, ...]", cast("Any", model).get_classifier())
    heads = nn.ModuleList(head if isinstance(head, tuple) else [head])
    mine = set(heads.parameters())
    return {name for name, parameter in model.named_parameters() if parameter in mine}


def trained_top(model: nn.Module) -> nn.Linear | SlicePool | None:
    """What makes the logits, if it is all that is trained: a linear layer, or a pool of slices."""
    top = cast("Any", getattr(model, "get_classifier", lambda: None))()
    if isinstance(model, SliceAttention):
        top = model.pool
    top = top.linear if isinstance(top, CenteredHead) else top
    if not isinstance(top, nn.Linear | SlicePool):
        return None
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    return top if trained == set(top.parameters()) else None


def local_names(model: nn.Module, layers: Personal) -> set[str]:
    """Names of the trainable weights of layers that stay at a site."""
    match layers:
        case Personal.none:
            names: set[str] = set()
        case Personal.head:
            names = _head_names(model)
        case Personal.norms:
            named = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
            names = {
                f"{prefix}.{name}".lstrip(".")
                for prefix, module in named
                if isinstance(module, nn.LayerNorm | nn.GroupNorm)
                for name, _ in module.named_parameters(recurse=False)
            }
    return names & {name for name, p in model.named_parameters() if p.requires_grad}


def shared_weights(model: nn.Module, layers: Personal) -> Weights:
    """Copies of the trainable weights that travel: all but those of ``layers``."""
    own = local_names(model, layers)
    return {name: value for name, value in trainable_weights(model).items() if name not in own}


def trainable_weights(model: nn.Module) -> Weights:
    """Copies of the trainable weights by name: no other weights travel."""
    return {
        name: parameter.detach().cpu().numpy().astype(np.float32, copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_weights(model: nn.Module, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Put ``weights`` into ``model``.

    Raises:
        ValueError: if names, shapes or finiteness are not as the model expects.
    """
    expected = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(weights) != set(expected):
        raise ValueError(f"weights differ in {len(set(weights) ^ set(expected))} names")
    for name, parameter in expected.items():
        value = weights[name]
        if tuple(value.shape) != tuple(parameter.shape):
            raise ValueError(f"{name}: shape {value.shape}, expected {tuple(parameter.shape)}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: not finite")
        with torch.no_grad():
            parameter.copy_(torch.as_tensor(np.array(value, dtype=np.float32)))


def frozen_sha256(model: nn.Module) -> str:
    """Names what does not travel: frozen weights and buffers, so that both sides agree on it."""
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in model.state_dict().items()
        if name not in trainable
    }
    return weights_sha256(frozen)


def weights_sha256(weights: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 over names, shapes, types and bytes, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        digest.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
