"""The ServerApp of a bundle in a hospital network: holds the rounds of a prepared run.

Its process is told where runs lie by ``FEDWARD_RUNS``, and which one by the run's configuration.
It imports no code of a hospital and no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save

from common.errors import RunFailed, UsageError
from common.files import write_atomically
from common.messages import Weights
from common.seeds import SystemSeeds
from server import prepared
from server.checkpoint import latest_checkpoint
from server.end_state import EndState
from server.prepared import RUNS_VARIABLE, PreparedRun
from server.rounds import Outcome, Start, run

SCHEMA = "fedward.deployed-run/1"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Holds what is left of the run's rounds, and writes how it ended."""
    hold(grid, _named(os.environ, context.run_config))


def hold(grid: Grid, found: PreparedRun) -> Outcome:
    """The rounds of ``found``, from its last checkpoint on.

    Raises:
        RunFailed: There is no final model; the result says why, and the run can be started again.
    """
    config = found.config()
    start = Start(
        config=config,
        sites=tuple(config.federation.sites or ()),
        checkpoint=found.checkpoint(),
        frozen_sha256=found.frozen_sha256(),
        checkpoints=found.checkpoints,
        evaluate=_no_images,
        observe=lambda event: _note(found, event),
        seeds=SystemSeeds(),
        site_keys=found.site_keys(),
        identities=found.identities(),
    )
    try:
        outcome = run(grid, start)
    except RunFailed as error:
        _end(found, EndState.failed, str(error))
        raise
    weights = save(outcome.checkpoint.weights, metadata={"fedward": outcome.checkpoint.run_id})
    write_atomically(found.weights, weights)
    _end(found, outcome.state, "")
    return outcome


def _named(environment: Mapping[str, str], run_config: Mapping[str, Any]) -> PreparedRun:
    if RUNS_VARIABLE not in environment:
        raise UsageError(f"{RUNS_VARIABLE} is not set: where do runs lie?")
    return prepared.find(Path(environment[RUNS_VARIABLE]), str(run_config.get("run", "")))


def _no_images(weights: Weights) -> dict[str, Any]:
    """The server of a hospital network has no images to look at the model with."""
    del weights
    return {}


def _note(found: PreparedRun, event: dict[str, Any]) -> None:
    with found.events.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event, allow_nan=False) + "\n")


def _end(found: PreparedRun, state: EndState, why: str) -> None:
    last = latest_checkpoint(found.checkpoints)
    assert last is not None
    identities = found.identities()
    result = {
        "schema": SCHEMA,
        "run_id": last.run_id,
        "state": state.value,
        "ended": why,
        "trust": found.config().federation.trust.value,
        "roster": None if identities is None else identities.digest,
        "recipe": None if last.recipe is None else asdict(last.recipe),
        "patients": dict(last.patients),
        "rounds": list(last.history),
    }
    write_atomically(found.result, json.dumps(result, indent=2, allow_nan=False) + "\n")
    _note(found, {"event": "ended", "state": state.value})
