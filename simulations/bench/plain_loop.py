"""The hospitals' work of a run in one loop, as a yardstick: no server, no ledger, no messages.

Nothing that it trains may be used: no budget is asked, nothing is recorded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import configs


def main(arguments: list[str]) -> None:
    """Train as the run of ``RUN_DIR`` would; print its rounds' seconds as JSON.

    Args:
        arguments: ``[RUN_DIR]``, a folder with a configuration and a ``run_id``.
    """
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    print(json.dumps({"seconds": rounds(Path(arguments[0]))}))


def rounds(folder: Path) -> list[float]:
    """Seconds of each round."""
    import numpy as np

    from client.dp.training import RoundSeeds
    from client.local_model import Surroundings
    from common import models
    from server.recipe import plan
    from simulations.run_dir import RunDir
    from simulations.sites import SimulatedSites, prepare

    run_dir = RunDir(path=folder)
    config = configs.read_yaml(run_dir.config)
    hospitals = prepare(config, run_dir)
    num_patients = sum(hospitals.sites.values())
    recipe = plan(config, num_patients=num_patients)
    sites = SimulatedSites(
        config=config,
        run_dir=run_dir,
        names=tuple(hospitals.sites),
        num_classes=hospitals.num_classes,
    )
    setups = [sites.setup(name) for name in hospitals.sites]
    warm = [s.model.prepare(recipe, Surroundings(cohort=s.cohort)) for s in setups]
    weights = models.trainable_weights(warm[0].model)
    taken: list[float] = []
    for number in range(1, config.federation.rounds + 1):
        began = time.perf_counter()
        total = {name: np.zeros_like(value) for name, value in weights.items()}
        for setup, training in zip(setups, warm, strict=True):
            models.load_trainable_weights(training.model, weights)
            seeds = RoundSeeds(
                sampling=setup.seeds.seed(number, "sampling"),
                noise=setup.seeds.seed(number, "noise"),
            )
            training.train(setup.cohort, recipe, seeds)
            share = np.float32(setup.cohort.num_patients / num_patients)
            for name, value in models.trainable_weights(training.model).items():
                total[name] += share * value
        weights = total
        taken.append(time.perf_counter() - began)
    return taken


if __name__ == "__main__":
    main(sys.argv[1:])
