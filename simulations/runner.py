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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import configs
from common.config import Config, Job
from common.errors import RunFailed, UsageError
from server.end_state import EndState
from simulations.run_dir import RunDir

if TYPE_CHECKING:
    from server.rounds import Outcome, Start
    from simulations.sites import SimulatedSites

Observe = Callable[[dict[str, Any]], None]

EXIT_FAILED, EXIT_USAGE = 1, 2

# Ray gives its processes 30 seconds to come up, which a busy machine may not manage.
_RAY_ATTEMPTS = 5
_LINGER_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    """Run the simulation of ``RUN_DIR``; events go to the file descriptor ``EVENTS``.

    Args:
        arguments: ``[RUN_DIR, EVENTS, RAY_DIR]``.
    """
    run_dir = RunDir(path=Path(arguments[0]))
    events = os.fdopen(int(arguments[1]), "w", buffering=1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    code = EXIT_FAILED

    def observe(event: dict[str, Any]) -> None:
        nonlocal code
        if event["event"] == "done":
            code = EndState(event["result"]["state"]).exit_code
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
    return code


def _end_with_parent() -> None:
    """Standard input is a pipe whose other end only the parent holds."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(EXIT_FAILED)


def _simulate(config: Config, run_dir: RunDir, ray_dir: Path, observe: Observe) -> None:
    ray = _RayStart(config, ray_dir)
    from server.tracking import Tracking

    with Tracking(run_dir.tracking) as tracking:

        def both(event: dict[str, Any]) -> None:
            observe(event)
            tracking.take(event)

        _do_job(config, run_dir, ray, both)


def _do_job(config: Config, run_dir: RunDir, ray: _RayStart, observe: Observe) -> None:
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
        for _ in range(_RAY_ATTEMPTS):
            self._error = self._attempt()
            if self._error is None or "timed out" not in str(self._error):
                break
        self._done.set()
        threading.Event().wait()

    def _attempt(self) -> Exception | None:
        wanted = self._config.simulation.cpus_per_site * self._config.federation.num_sites
        try:
            import ray

            ray.shutdown()  # what an attempt before this one left
            ray.init(
                address="local",
                num_cpus=max(1, int(min(os.cpu_count() or 1, wanted))),
                include_dashboard=False,
                logging_level=logging.WARNING,
                _temp_dir=str(self._ray_dir),
            )
        except Exception as error:
            return error
        return None

    def wait(self) -> None:
        """Return when Ray runs.

        Raises:
            RunFailed: if it could not be started.
        """
        self._done.wait()
        if self._error is not None:
            raise RunFailed(f"Ray did not start: {self._error}")


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
