"""The state of a run after a round: weights and history in one file, whole or absent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import UsageError
from common.files import write_atomically
from common.messages import Weights

_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Everything the server needs to go on after ``round``.

    Attributes:
        run_id: names the run in every site's ledger.
        round: last finished round; 0 before the first.
        weights: the model after it.
        history: one record of every finished round, as in ``result.json``.
    """

    run_id: str
    round: int
    weights: Weights = field(repr=False)
    history: tuple[dict[str, Any], ...] = ()


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint, then drop all but the last two.

    Raises:
        OSError: if it cannot be written; older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "run_id": checkpoint.run_id,
        "round": checkpoint.round,
        "history": list(checkpoint.history),
    }
    content = save(checkpoint.weights, metadata={"fedward": json.dumps(state, allow_nan=False)})
    write_atomically(folder / f"round-{checkpoint.round:05d}.safetensors", content)
    for old in sorted(folder.glob("round-*.safetensors"))[:-_KEPT]:
        old.unlink(missing_ok=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The last finished round in ``folder``, if any.

    Raises:
        UsageError: if the newest file is not a checkpoint.
    """
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        return None
    try:
        with safe_open(str(paths[-1]), framework="numpy") as file:
            state = json.loads((file.metadata() or {})["fedward"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(
            run_id=state["run_id"],
            round=state["round"],
            weights=weights,
            history=tuple(state["history"]),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{paths[-1]}: not a checkpoint ({text})") from error
