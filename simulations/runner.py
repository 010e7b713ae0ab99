"""The process that runs a simulation: the server's rounds, and hospitals in Ray actors.

`simulations.simulate` starts it in the run's own empty folder, listens to the events that it
writes as JSON lines, and outlives it; if the parent dies, this process ends itself, and Ray's
processes with it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import configs
from common.config import Config, Job
from common.errors import RunFailed, UsageError
from server.end_state import EndState
from simulations.hosting.child import EXIT_FAILED, EXIT_USAGE, ChildSide
from simulations.hosting.ray_start import RayStart, Waits
from simulations.run_dir import RunDir

if TYPE_CHECKING:
    from server.rounds import Outcome, Start
    from simulations.sites import SimulatedSites

Observe = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> int:
    """Run the simulation of ``RUN_DIR``; events go to the file descriptor ``EVENTS``.

    Args:
        arguments: ``[RUN_DIR, EVENTS, RAY_DIR]``.
    """
    side = ChildSide(arguments)

    def start_ray(config: Config) -> Waits:
        wanted = config.simulation.cpus_per_site * config.federation.num_sites
        num_cpus = max(1, int(min(os.cpu_count() or 1, wanted)))
        return RayStart(num_cpus, side.ray_dir, partial(_open_ahead, config))

    return run(RunDir(path=side.folder), start_ray, side.tell)


def run(run_dir: RunDir, start_ray: Callable[[Config], Waits], tell: Observe) -> int:
    """Run the simulation of ``run_dir`` and return the exit code.

    Args:
        run_dir: with its configuration.
        start_ray: begins to start Ray for a run, where it does not run yet.
        tell: told of everything that happens, in the end of a result or of why there is none.
    """
    code = EXIT_FAILED

    def observe(event: dict[str, Any]) -> None:
        nonlocal code
        if event["event"] == "done":
            code = EndState(event["result"]["state"]).exit_code
        tell(event)

    try:
        _simulate(configs.read_yaml(run_dir.config), run_dir, start_ray, observe)
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


def _simulate(
    config: Config, run_dir: RunDir, start_ray: Callable[[Config], Waits], observe: Observe
) -> None:
    from server.mlflow_run import MlflowRun
    from server.tracking import Tracking

    run_id = run_dir.run_id.read_text().strip()
    mlflow = MlflowRun.begin(config.tracking, run_id=run_id, title=config.title)
    ray = start_ray(config)
    with Tracking(run_dir.tracking, mlflow) as tracking:

        def both(event: dict[str, Any]) -> None:
            observe(event)
            tracking.take(event)

        _do_job(config, run_dir, ray, both)


def _do_job(config: Config, run_dir: RunDir, ray: Waits, observe: Observe) -> None:
    observe({"event": "stage", "text": f"reading the study {config.data.name}"})
    from simulations.scene import Scene
    from simulations.sites import prepare

    def federate(starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
        from simulations.hosting.training import train

        observe({"event": "stage", "text": "starting Ray"})
        ahead = ray.wait()
        observe({"event": "stage", "text": "opening the sites"})
        return train(starts, sites, ahead)

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


def _open_ahead(config: Config) -> list[Any]:
    from simulations.hosting.hosts import open_ahead

    return open_ahead(config)


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(_code)  # a thread keeps Ray's processes
