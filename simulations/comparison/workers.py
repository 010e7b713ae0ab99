"""Warm processes that run trials side by side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

if TYPE_CHECKING:
    from simulations.comparison.trial import Job

_ATTEMPTS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a trial ended.

    Attributes:
        name: of the trial.
        problem: why it has no result; ``None`` if it has one.
        seconds: from its start to its end, of the last attempt.
        attempts: how often it was begun.
    """

    name: str
    problem: str | None
    seconds: float
    attempts: int


class Worker:
    """A process that goes from trial to trial: libraries are imported once."""

    def __init__(self, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)

    def run(self, job: Job) -> str | None:
        """Run one trial; returns what went wrong."""
        import traceback

        from common.errors import FedwardError
        from simulations.comparison.trial import run_trial

        try:
            run_trial(job)
        except FedwardError as error:
            return str(error)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        return None


@dataclass(kw_only=True, slots=True)
class _Seat:
    """A worker and what it is at."""

    worker: Any
    job: Job | None = None
    task: Any = None
    began: float = 0.0


class Crew:
    """Runs jobs on Ray actors, as many at a time as there are seats; these stay warm.

    A worker that dies costs its trial only: that is begun once more, by a new worker. Of trials
    that begin with the same pretrained model, one runs first and the others find it made.
    """

    def __init__(self, *, num_workers: int, num_cpus: float, num_gpus: float) -> None:
        """Workers start when there is work.

        Args:
            num_workers: at most.
            num_cpus: of each; at least 1 thread.
            num_gpus: of each.
        """
        self._num_workers = num_workers
        self._seats: list[_Seat] = []
        self._threads = max(1, int(num_cpus))
        self._actor: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0)(Worker)

    def run(
        self,
        jobs: Sequence[Job],
        *,
        began: Callable[[str], None],
        ended: Callable[[Ending], None],
    ) -> None:
        """Run all jobs; returns when each has ended.

        Args:
            jobs: in the order in which to begin them.
            began: told the name of a trial that begins.
            ended: told how it ended.
        """
        waiting = deque(jobs)
        attempts: dict[str, int] = {job.name: 0 for job in jobs}
        seats = self._seats
        while waiting or any(seat.job for seat in seats):
            for seat in self._free(len(waiting)):
                job = _next(waiting, [other.job for other in seats if other.job])
                if job is None:
                    break
                attempts[job.name] += 1
                seat.job, seat.began = job, time.monotonic()
                seat.task = seat.worker.run.remote(job)
                began(job.name)
            done, _ = ray.wait([seat.task for seat in seats if seat.job], num_returns=1)
            seat = next(seat for seat in seats if seat.task == done[0])
            job = seat.job
            assert job is not None
            try:
                problem, died = ray.get(done[0]), False
            except (RayActorError, OutOfMemoryError) as error:
                problem, died = f"its process died ({_first_line(error)})", True
            seat.job = seat.task = None
            if died:
                seats.remove(seat)
            if died and attempts[job.name] < _ATTEMPTS:
                waiting.appendleft(job)
                continue
            seconds = time.monotonic() - seat.began
            ended(
                Ending(name=job.name, problem=problem, seconds=seconds, attempts=attempts[job.name])
            )

    def _free(self, num_waiting: int) -> list[_Seat]:
        """Seats without work, new ones included."""
        seats = self._seats
        free = [seat for seat in seats if seat.job is None]
        while len(seats) < self._num_workers and len(free) < num_waiting:
            seat = _Seat(worker=self._actor.remote(self._threads))
            seats.append(seat)
            free.append(seat)
        return free


def _next(waiting: deque[Job], running: Sequence[Job]) -> Job | None:
    """The first job whose start nobody is making right now."""
    making = {
        job.start for job in running if job.start and not job.folder.start(job.start).is_file()
    }
    for job in waiting:
        if job.start is None or job.start not in making:
            waiting.remove(job)
            return job
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
