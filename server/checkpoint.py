"""The state of a run after a round, in one file that is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import UsageError
from common.files import write_atomically
from common.messages import Recipe, Weights

_KEPT = 2
_MODEL = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Everything the server needs to go on after ``round``.

    Attributes:
        run_id: names the run in every site's ledger.
        round: last finished round; 0 before the first.
        weights: the model after it.
        history: one record of every finished round, as in ``result.json``.
        recipe: that the sites follow; absent before they said how many patients they have.
        patients: of every site that has said so.
        strategy: what the strategy remembers, as arrays by kind and name of weight.
    """

    run_id: str
    round: int
    weights: Weights = field(repr=False)
    history: tuple[dict[str, Any], ...] = ()
    recipe: Recipe | None = None
    patients: Mapping[str, int] = field(default_factory=dict[str, int])
    strategy: Mapping[str, Weights] = field(default_factory=dict[str, Weights], repr=False)


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
        "recipe": None if checkpoint.recipe is None else checkpoint.recipe.to_dict(),
        "patients": dict(checkpoint.patients),
    }
    arrays = {f"{_MODEL}/{name}": value for name, value in checkpoint.weights.items()}
    for kind, values in checkpoint.strategy.items():
        arrays |= {f"{kind}/{name}": value for name, value in values.items()}
    content = save(arrays, metadata={"fedward": json.dumps(state, allow_nan=False)})
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
            arrays: dict[str, Weights] = {}
            for key in file.keys():  # noqa: SIM118
                kind, _, name = key.partition("/")
                arrays.setdefault(kind, {})[name] = file.get_tensor(key)
        return Checkpoint(
            run_id=state["run_id"],
            round=state["round"],
            weights=arrays.pop(_MODEL, {}),
            history=tuple(state["history"]),
            recipe=None if state["recipe"] is None else Recipe.from_dict(state["recipe"]),
            patients=state["patients"],
            strategy=arrays,
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{paths[-1]}: not a checkpoint ({text})") from error
