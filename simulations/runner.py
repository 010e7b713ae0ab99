"""The process that runs a simulation: Flower's ServerApp and ClientApps on Flower's Ray engine.

`simulations.simulate` starts it in the run's own empty folder, listens to the events that it
writes as JSON lines, and outlives it; if the parent dies, this process ends itself, and Ray's
processes with it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import configs
from common.config import Config, EngineName
from common.errors import RunFailed, UsageError
from simulations.run_dir import RunDir

if TYPE_CHECKING:
    from server.rounds import Outcome, Start
    from simulations.sites import Hospitals, SimulatedSites

Observe = Callable[[dict[str, Any]], None]

EXIT_FAILED, EXIT_USAGE = 1, 2


def main(arguments: list[str]) -> int:
    """Run the simulation of ``RUN_DIR``; events go to the file descriptor ``EVENTS``.

    Args:
        arguments: ``[RUN_DIR, EVENTS, RAY_DIR]``.
    """
    run_dir = RunDir(path=Path(arguments[0]))
    events = os.fdopen(int(arguments[1]), "w", buffering=1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def observe(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        _simulate(configs.read_yaml(run_dir.config), run_dir, Path(arguments[2]), observe)
    except UsageError as error:
        observe({"event": "usage_error", "message": str(error)})
        return EXIT_USAGE
    except RunFailed as error:
        observe({"event": "failed", "message": str(error)})
        return EXIT_FAILED
    except Exception as error:
        traceback.print_exc()
        observe({"event": "failed", "message": f"{type(error).__name__}: {error}"})
        return EXIT_FAILED
    return 0


def _end_with_parent() -> None:
    """Standard input is a pipe whose other end only the parent holds."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(EXIT_FAILED)


def _simulate(config: Config, run_dir: RunDir, ray_dir: Path, observe: Observe) -> None:
    ray = _RayStart(config, ray_dir)
    observe({"event": "stage", "text": f"reading the study {config.data.name}"})
    from simulations.sites import SimulatedSites, prepare, shared_model

    hospitals = prepare(config, run_dir)
    observe({"event": "stage", "text": "building the model"})
    from common import models
    from server.checkpoint import Checkpoint, latest_checkpoint
    from server.rounds import Start
    from simulations.evaluation import HeldOut
    from simulations.outcome import conclude, fail

    spec = shared_model(config, hospitals.num_classes, hospitals.depth)
    if config.privacy.private:
        _check_engine(config, hospitals)
    model = spec.build()
    validation = HeldOut(model, hospitals.task, hospitals.val)
    test = HeldOut(model, hospitals.task, hospitals.test)
    test.check("test")
    checkpoint = latest_checkpoint(run_dir.checkpoints) or Checkpoint(
        run_id=run_dir.run_id.read_text().strip(),
        round=0,
        weights=models.trainable_weights(model),
    )
    start = Start(
        config=config,
        checkpoint=checkpoint,
        frozen_sha256=models.frozen_sha256(model),
        checkpoints=run_dir.checkpoints,
        evaluate=lambda weights: {"split": "val", "auroc": validation.auroc(weights)},
        observe=observe,
    )
    sites = SimulatedSites(
        config=config,
        run_dir=run_dir,
        names=tuple(hospitals.sites),
        num_classes=hospitals.num_classes,
    )
    observe({"event": "stage", "text": "starting Ray"})
    ray.wait()
    observe({"event": "stage", "text": "opening the sites"})
    try:
        outcome = _run_flower(config, start, sites)
    except RunFailed:
        fail(hospitals, sites)
        raise
    observe({"event": "stage", "text": "testing the final model"})
    result = conclude(hospitals, sites, outcome, test)
    observe({"event": "done", "result": result})


def _check_engine(config: Config, hospitals: Hospitals) -> None:
    """Refuse a model that private training does not cover before any site is asked."""
    from client.dp import engines
    from client.dp.check import check_engine, made_up_batch
    from simulations.sites import shared_model

    name = config.privacy.engine
    model = shared_model(config, hospitals.num_classes, hospitals.depth).build()
    batch = made_up_batch(
        hospitals.val.images.shape[1:],
        num_outputs=hospitals.num_classes,
        multilabel=hospitals.val.labels.ndim > 1,
        one_image_each=name is EngineName.opacus_ghost,
    )
    try:
        check_engine(model, engines.build(name, model), batch)
    except UsageError as error:
        raise UsageError(
            f"model={config.model.name} finetune={config.finetune.mode.value}: {error}"
        ) from error


class _RayStart:
    """Starts Ray for this run alone while the study is being read; Flower's engine joins it.

    Ray's processes end with the *thread* that started them, so this one stays.
    """

    def __init__(self, config: Config, ray_dir: Path) -> None:
        self._config = config
        self._ray_dir = ray_dir
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._start, daemon=True).start()

    def _start(self) -> None:
        wanted = self._config.simulation.cpus_per_site * self._config.federation.num_sites
        try:
            import ray

            ray.init(
                address="local",
                num_cpus=max(1, int(min(os.cpu_count() or 1, wanted))),
                include_dashboard=False,
                logging_level=logging.WARNING,
                _temp_dir=str(self._ray_dir),
            )
        except Exception as error:
            self._error = error
        self._done.set()
        threading.Event().wait()

    def wait(self) -> None:
        """Return when Ray runs.

        Raises:
            RunFailed: if it could not be started.
        """
        self._done.wait()
        if self._error is not None:
            raise RunFailed(f"Ray did not start: {self._error}")


def _run_flower(config: Config, start: Start, sites: SimulatedSites) -> Outcome:
    """Flower's simulation engine, in this process, on the Ray that is running.

    `flwr run` would start the same engine behind a SuperLink that it leaves running, in the
    working directory of whoever started that first.
    """
    from flwr.simulation import run_simulation

    from client.app import build as build_client
    from server.app import build as build_server

    outcomes: list[Outcome] = []
    resources = config.simulation
    run_simulation(
        server_app=build_server(start, outcomes.append),
        client_app=build_client(sites),
        num_supernodes=config.federation.num_sites,
        backend_config={
            "client_resources": {
                "num_cpus": resources.cpus_per_site,
                "num_gpus": resources.gpus_per_site,
            },
        },
    )
    if not outcomes:
        raise RunFailed("Flower's engine ended without an outcome; see log.txt")
    return outcomes[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
