"""Runs on a Ray that is already there, in processes that have imported everything before."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

import psutil

from common.errors import UsageError
from simulations.code_version import code_version
from simulations.hosting.child import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, QUIET
from simulations.hosting.ray_start import RunningRay, connect

if TYPE_CHECKING:
    from common.config import SimulationConfig
    from simulations.run_dir import RunDir

_LOOK_SECONDS = 1.0


class Runner:
    """Runs simulations, one at a time; on the machine of the command that asks for them."""

    def __init__(self) -> None:
        import simulations.classification
        import simulations.hosting.training
        import simulations.runner

        del simulations

    def ready(self) -> bool:
        """Answered when everything is imported and nothing runs."""
        return True

    def run(self, run_dir: RunDir, command: int) -> Generator[dict[str, Any] | int]:
        """Run the simulation of ``run_dir``: what happens, and in the end the exit code.

        Args:
            run_dir: whose configuration is run.
            command: number of the process that waits for it; this one ends with that one.
        """
        told: SimpleQueue[dict[str, Any] | int] = SimpleQueue()
        with run_dir.log.open("ab") as log:
            over = threading.Event()
            threading.Thread(target=_end_with, args=(command, over), daemon=True).start()
            threading.Thread(target=_work, args=(run_dir, log, told.put), daemon=True).start()
            code: dict[str, Any] | int = {}
            while not isinstance(code, int):
                code = told.get()
                yield code
            over.set()


def _work(run_dir: RunDir, log: IO[bytes], tell: Callable[[dict[str, Any] | int], None]) -> None:
    from simulations.runner import run

    os.environ.update(QUIET, FLWR_HOME=str(run_dir.work / "flwr"))
    with contextlib.chdir(run_dir.work), _printing_to(log):
        tell(run(run_dir, lambda _: RunningRay(), tell))


@contextlib.contextmanager
def _printing_to(log: IO[bytes]) -> Iterator[None]:
    """Whatever this process prints goes to ``log``."""
    kept = [os.dup(stream) for stream in (1, 2)]
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)


def _end_with(command: int, over: threading.Event) -> None:
    """End this process, and so the run, if the command dies before the run is over."""
    try:
        process = psutil.Process(command)
    except psutil.NoSuchProcess:
        os._exit(EXIT_FAILED)
    while not over.wait(_LOOK_SECONDS):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            os._exit(EXIT_FAILED)


def run_warm(
    address: str, run_dir: RunDir, show: Callable[[dict[str, Any]], None]
) -> tuple[str, int]:
    """Run ``run_dir`` on the Ray at ``address``; returns the last words and an exit code.

    Args:
        address: ``auto`` or host:port.
        run_dir: with its configuration.
        show: told of each event.
    """
    import ray
    from ray.exceptions import RayError

    try:
        connect(address, run_dir.work)
    except UsageError as error:
        return str(error), EXIT_USAGE
    message, code, runner = "the simulation ended without a word", EXIT_FAILED, open_runner()
    try:
        for told in runner.run.options(num_returns="streaming").remote(run_dir, os.getpid()):
            event: dict[str, Any] | int = ray.get(told)
            if isinstance(event, int):
                code = event
            else:
                message = event.get("message", message)
                show(event)
        return message, code
    except KeyboardInterrupt:
        ray.kill(runner, no_restart=False)
        return "interrupted", EXIT_INTERRUPTED
    except RayError as error:
        return f"the process of the run died ({str(error).strip().splitlines()[-1]})", EXIT_FAILED
    finally:
        ray.shutdown()


def open_runner() -> Any:
    """A warm process for a run on this machine; a fresh one if that is at another run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from simulations.hosting.named_actors import IDLE_SECONDS, end_idle_others

    node: str = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(num_cpus=0)(Runner)
    here: dict[str, Any] = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
    name = f"runner-{node[:12]}-{code_version()}"
    end_idle_others(f"runner-{node[:12]}", but=name)
    try:
        runner = ray.get_actor(name)
    except ValueError:
        return actor.options(name=name, lifetime="detached", max_restarts=-1, **here).remote()
    idle, _ = ray.wait([runner.ready.remote()], timeout=IDLE_SECONDS)
    return runner if idle else actor.options(**here).remote()


def warm_up(address: str, simulation: SimulationConfig, *, num_sites: int) -> None:
    """Start what runs will need, and return when everything is imported."""
    import ray

    from simulations.hosting import ray_here
    from simulations.hosting.hosts import open_hosts, with_gpus

    connect(address, ray_here.folder())
    try:
        shared = with_gpus(simulation, num_sites=num_sites)
        processes = [open_runner(), *open_hosts(shared, num_sites=num_sites)]
        ray.get([process.ready.remote() for process in processes])
    finally:
        ray.shutdown()
