"""The process that runs a simulation: Flower's ServerApp and ClientApps on Flower's Ray engine.

`simulations.simulate` starts it in the run's own empty folder, listens to the events that it
writes as JSON lines, and outlives it; if the parent dies, this process ends itself, and Ray's
processes with it.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import configs
from common.config import Config, Job
from common.errors import RunFailed, UsageError
from server.end_state import EndState
from simulations.child import EXIT_FAILED, EXIT_USAGE, ChildSide
from simulations.ray_start import RayStart
from simulations.run_dir import RunDir

if TYPE_CHECKING:
    from server.rounds import Outcome, Start
    from simulations.sites import SimulatedSites

Observe = Callable[[dict[str, Any]], None]

_LINGER_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    """Run the simulation of ``RUN_DIR``; events go to the file descriptor ``EVENTS``.

    Args:
        arguments: ``[RUN_DIR, EVENTS, RAY_DIR]``.
    """
    side = ChildSide(arguments)
    run_dir = RunDir(path=side.folder)
    code = EXIT_FAILED

    def observe(event: dict[str, Any]) -> None:
        nonlocal code
        if event["event"] == "done":
            code = EndState(event["result"]["state"]).exit_code
        side.tell(event)

    try:
        _simulate(configs.read_yaml(run_dir.config), run_dir, side.ray_dir, observe)
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
    return code


def _simulate(config: Config, run_dir: RunDir, ray_dir: Path, observe: Observe) -> None:
    from server.mlflow_run import MlflowRun
    from server.tracking import Tracking

    run_id = run_dir.run_id.read_text().strip()
    mlflow = MlflowRun.begin(config.tracking, run_id=run_id, title=config.title)
    wanted = config.simulation.cpus_per_site * config.federation.num_sites
    ray = RayStart(max(1, int(min(os.cpu_count() or 1, wanted))), ray_dir)
    with Tracking(run_dir.tracking, mlflow) as tracking:

        def both(event: dict[str, Any]) -> None:
            observe(event)
            tracking.take(event)

        _do_job(config, run_dir, ray, both)


def _do_job(config: Config, run_dir: RunDir, ray: RayStart, observe: Observe) -> None:
    observe({"event": "stage", "text": f"reading the study {config.data.name}"})
    from simulations.scene import Scene
    from simulations.sites import prepare

    def federate(starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
        observe({"event": "stage", "text": "starting Ray"})
        ray.wait()
        observe({"event": "stage", "text": "opening the sites"})
        return _run_flower(config, starts, sites)

    scene = Scene(
        config=config,
        run_dir=run_dir,
        hospitals=prepare(config, run_dir),
        observe=observe,
        federate=federate,
    )
    if config.job is Job.synthesize:
        from simulations.synthesis import synthesize

        synthesize(scene)
    else:
        from simulations.classification import classify

        classify(scene)


def _run_flower(config: Config, starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
    """Flower's simulation engine, in this process, on the Ray that is running.

    `flwr run` would start the same engine behind a SuperLink that it leaves running, in the
    working directory of whoever started that first.
    """
    from flwr.simulation import run_simulation

    from client.app import build as build_client
    from server.app import build as build_server

    outcomes: list[Outcome] = []
    errors: list[BaseException] = []
    over = threading.Event()

    def finish(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == len(starts):
            over.set()

    def fail(error: BaseException) -> None:
        errors.append(error)
        over.set()

    def engine() -> None:
        try:
            run_simulation(
                server_app=build_server(starts, finish, fail),
                client_app=build_client(sites),
                num_supernodes=config.federation.num_sites,
                backend_config={"client_resources": _resources(config)},
            )
        except BaseException as error:
            fail(error)
        over.set()

    thread = threading.Thread(target=engine, daemon=True)
    thread.start()
    over.wait()
    # The engine waits for every site, also for one that hangs and was given up.
    thread.join(_LINGER_SECONDS)
    if errors:
        raise errors[0]
    if len(outcomes) < len(starts):
        raise RunFailed("Flower's engine ended without an outcome; see log.txt")
    return outcomes


def _resources(config: Config) -> dict[str, Any]:
    """Options of Ray for the processes of sites; one that dies is started again."""
    return {
        "num_cpus": config.simulation.cpus_per_site,
        "num_gpus": config.simulation.gpus_per_site,
        "max_restarts": -1,
    }


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(_code)  # threads of the engine may wait for a site that hangs
