"""Which weights of a model are trained, and with that, which travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from common.config import FinetuneConfig, FinetuneMode
from common.errors import UsageError


class LowRank(nn.Module):
    """A frozen linear layer plus a trained one of low rank (Hu et al. 2021, arXiv 2106.09685).

    The addition starts as zero: y = W x + b + U (D x), with D (rank, d) random and U (p, rank) 0.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) → (..., p)."""
        return self.base(x) + self.up(self.down(x))


def mark_trainable(
    model: nn.Module,
    finetune: FinetuneConfig,
    *,
    head: set[str],
    blocks: Sequence[Sequence[str]],
    example: Tensor,
) -> None:
    """Freeze what is not trained; with ``lora``, add what is.

    Args:
        model: as built, before any training.
        finetune: what to train.
        head: names of the head's weights, which are always trained.
        blocks: names of weights from the input to the output, block by block; the head last.
        example: an input of the model.

    Raises:
        UsageError: if the model does not have what the mode trains.
    """
    match finetune.mode:
        case FinetuneMode.all:
            trained = {name for name, _ in model.named_parameters()}
        case FinetuneMode.head:
            trained = head
        case FinetuneMode.bitfit:
            biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
            trained = head | biases
        case FinetuneMode.last_blocks:
            trained = head | _last(blocks, finetune.blocks)
        case FinetuneMode.lora:
            trained = head | _add_low_rank(model, finetune.rank, example)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def _last(blocks: Sequence[Sequence[str]], count: int) -> set[str]:
    if count >= len(blocks) - 1:
        raise UsageError(
            f"finetune.blocks={count}: this model has {len(blocks) - 2} blocks; for all of its "
            "weights use finetune=all"
        )
    return {name for block in blocks[-1 - count :] for name in block}


def _add_low_rank(model: nn.Module, rank: int, example: Tensor) -> set[str]:
    """Wrap the linear layers of attention; returns the names of the added weights."""
    places = list(_attention_layers(model))
    if not places:
        raise UsageError("finetune=lora: this model has no linear layers in attention modules")
    for parent, name, linear in places:
        setattr(parent, name, LowRank(linear, rank))
    _check_all_used(model, example)
    return {
        f"{name}.{part}.weight" for name, _ in _low_rank_layers(model) for part in ("down", "up")
    }


def _low_rank_layers(model: nn.Module) -> list[tuple[str, LowRank]]:
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    return [(name, module) for name, module in modules if isinstance(module, LowRank)]


def _attention_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in modules:
        if name.rpartition(".")[2].startswith("attn"):
            for child_name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    yield module, child_name, child


def _check_all_used(model: nn.Module, example: Tensor) -> None:
    """A module that reads a layer's weight without calling it would ignore what is added."""
    called: set[nn.Module] = set()
    layers = {layer: name for name, layer in _low_rank_layers(model)}

    def note(layer: nn.Module, _: object) -> None:
        called.add(layer)

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            model(example)
    except AttributeError as error:
        raise UsageError(f"finetune=lora: does not fit this model ({error})") from error
    finally:
        for handle in handles:
            handle.remove()
    unused = [name for layer, name in layers.items() if layer not in called]
    if unused:
        raise UsageError(f"finetune=lora: this model does not call its layer {unused[0]}")
