"""The engines to choose from."""

from __future__ import annotations

from torch import nn

from client.dp.engine import BookkeepingEngine, Engine
from client.dp.opacus_engine import OpacusEngine, OpacusGhostEngine
from common.config import EngineName, Precision
from common.errors import UsageError


def build(name: EngineName, model: nn.Module, precision: Precision = Precision.fp32) -> Engine:
    """Attach an engine to ``model``, whose trainable weights are those of now.

    Raises:
        UsageError: if the engine cannot be attached to the model.
    """
    if precision is not Precision.fp32 and name is not EngineName.bookkeeping:
        raise UsageError(f"precision {precision.value} needs the book-keeping engine")
    match name:
        case EngineName.bookkeeping:
            return BookkeepingEngine(model, precision)
        case EngineName.opacus_hooks:
            return OpacusEngine(model, functorch=False)
        case EngineName.opacus_functorch:
            return OpacusEngine(model, functorch=True)
        case EngineName.opacus_ghost:
            return OpacusGhostEngine(model)
