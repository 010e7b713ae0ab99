"""A device that is not the processor, as far as torch can tell; a GPU's strictness without one.

Its numbers are computed by the processor. What a GPU would refuse, it refuses: an operation on
tensors here and there, random numbers from a generator of the processor, a view as an array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from client import devices

DEVICE = torch.device("privateuseone", 0)
_GENERATORS: dict[int, torch.Generator] = {}
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class There(Tensor):
    """A tensor of the other device; ``here`` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            *(cls, here.shape),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        return _run(func, tuple(args), dict(kwargs or {}))

    def as_subclass(self, cls: type) -> Tensor:
        """Torch cannot give one tensor two classes in Python; so it is one class of both."""
        return _Alias.apply(self, cls)


class _Alias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: There, cls: type) -> Tensor:
        del ctx
        both = There if cls is Tensor else type(cls.__name__, (cls, There), {})
        return both(x.here)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradient, None


class Generator(torch.Generator):
    """Random numbers of the other device: those that the processor would draw."""

    def __init__(self) -> None:
        super().__init__()
        _GENERATORS[self._cdata] = self  # where operations get it, it has lost its class

    @property
    def device(self) -> torch.device:
        return DEVICE


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    if there and func not in _COPIES:
        here = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.dim()]
        if here:
            raise RuntimeError(f"{func}: tensors on {DEVICE} and on {here[0].device}")
    asked = kwargs.get("device")
    goes_there = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if func is torch.ops.aten.copy_.default:
        goes_there = isinstance(args[0], There)
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in _GENERATORS) is not goes_there:
        raise RuntimeError(f"{func}: a generator of another device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(There, lambda tensor: tensor.here, (args, kwargs))
    if func is torch.ops.aten._to_copy.default:  # nothing to do for the processor is a copy for us
        inner_args = (inner_args[0].clone(), *inner_args[1:])
    found = func(*inner_args, **inner_kwargs)
    if not goes_there:
        return found
    wrapped = tree_map_only(Tensor, There, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


class _Strict(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        return _run(func, tuple(args), dict(kwargs or {}))


@pytest.fixture(scope="session")
def _backend() -> None:
    _setup_privateuseone_for_python_backend("elsewhere", _Backend())


@pytest.fixture
def elsewhere(_backend: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The other device, in force for one test."""
    cpu_generator = devices.generator_on

    def generator_on(device: torch.device, seed: int) -> torch.Generator:
        if device.type != DEVICE.type:
            return cpu_generator(device, seed)
        return Generator().manual_seed(seed)

    monkeypatch.setattr(devices, "generator_on", generator_on)
    with _Strict():
        yield DEVICE
