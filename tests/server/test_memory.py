"""The server's memory over many rounds."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from common.config import StrategyConfig, StrategyName
from common.messages import TrainReply, TrainRequest, Weights
from server.checkpoint import Checkpoint
from server.rounds import EndState, run


@pytest.mark.long
def test_two_hundred_rounds_hardly_grow_the_servers_memory(town: Any, tmp_path: Path) -> None:
    """Between the second ten rounds and the last: below 5 %.

    Least resident memory of ten rounds each, since it swings with buffers that are in use just now.
    """
    memory: dict[int, int] = {}

    class Still(town.Hospital):
        def train(self, request: TrainRequest) -> TrainReply:
            reply = super().train(request)
            self.requests.clear()  # the hospitals' memory is not the server's
            return reply

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            gc.collect()
            memory[event["round"]] = psutil.Process().memory_info().rss

    task = town.Run(tmp_path, rounds=200, observe=look)
    weights: Weights = {"w": np.zeros((1000, 1000), np.float32)}
    task.checkpoint = Checkpoint(run_id="r1", round=0, weights=weights)
    task = replace(task, config={"strategy": StrategyConfig(name=StrategyName.fedadam)})
    start = replace(task.start(), evaluate=lambda weights: {})
    sites = (Still(name=name, max_rounds=200) for name in town.NAMES)
    assert run(town.network(*sites), start).state is EndState.completed
    first = min(memory[number] for number in range(11, 21))
    last = min(memory[number] for number in range(191, 201))
    print(f"memory: {first / 1e6:.1f} MB in rounds 11 to 20, {last / 1e6:.1f} in 191 to 200")
    assert last < 1.05 * first
