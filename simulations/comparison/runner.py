"""The process that runs a comparison: plans, trains what has no result yet, compares.

`simulations.comparison.command` starts it, listens to its events, and outlives it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from common.errors import FedwardError, RunFailed, UsageError
from common.files import write_atomically
from simulations.comparison.folder import Folder
from simulations.comparison.plan import Plan, Trial, plan
from simulations.comparison.request import Request
from simulations.comparison.tuning import SearchPlan, Tuning
from simulations.hosting.child import EXIT_FAILED, EXIT_USAGE, ChildSide
from simulations.hosting.ray_start import RayStart

if TYPE_CHECKING:
    from simulations.comparison.workers import Crew


def main(arguments: list[str]) -> int:
    """Run the comparison of a folder; returns an exit code."""
    side = ChildSide(arguments)
    try:
        return _Comparison(side).run()
    except UsageError as error:
        side.tell({"event": "usage_error", "message": str(error)})
        return EXIT_USAGE
    except FedwardError as error:
        side.tell({"event": "failed", "message": str(error)})
    except Exception as error:
        traceback.print_exc()
        side.tell({"event": "failed", "message": f"{type(error).__name__}: {error}"})
    return EXIT_FAILED


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0))


class _Comparison:
    """A comparison on its way."""

    def __init__(self, side: ChildSide) -> None:
        self._side = side
        self._folder = Folder(path=side.folder)
        self._request = Request.from_json(self._folder.request.read_text())
        self._problems: dict[str, str] = {}
        self._crew: Crew | None = None

    def run(self) -> int:
        """Plan, train, compare."""
        self._side.tell({"event": "stage", "text": "reading the study"})
        tuning = self._tune()
        planned = plan(self._request, self._folder, None if tuning is None else tuning.chosen)
        self._run_missing(planned, {trial.name: trial for trial in planned.trials}, "training")
        return self._compare(planned, tuning)

    def _tune(self) -> Tuning | None:
        """Run the search that was asked for, if any."""
        search = self._request.search
        if search is None:
            return None
        searched = SearchPlan.of(self._request, search, self._folder)
        self._run_missing(searched.plans[0], searched.trials, "choosing settings")
        return searched.choose(self._folder, self._problems)

    def _run_missing(self, planned: Plan, trials: dict[str, Trial], stage: str) -> None:
        todo = {
            name: trial
            for name, trial in trials.items()
            if not self._folder.finished(name).result.is_file()
        }
        workers = max(1, min(self._most_workers(planned), len(todo)))
        self._tell_plan(planned, todo, num_trials=len(trials), workers=workers)
        if todo:
            crew = self._hired(planned)
            self._side.tell({"event": "stage", "text": stage})
            self._train(crew, todo)

    def _most_workers(self, planned: Plan) -> int:
        """How many trials can run side by side."""
        return max(1, int(_num_cpus() / self._cpus_each(planned)))

    def _cpus_each(self, planned: Plan) -> float:
        return min(planned.config.simulation.cpus_per_site, _num_cpus())

    def _tell_plan(
        self, planned: Plan, todo: dict[str, Trial], *, num_trials: int, workers: int
    ) -> None:
        self._side.tell(
            {
                "event": "planned",
                "study": planned.config.data.name,
                "sites": planned.survey.sites,
                "num_trials": num_trials,
                "num_workers": workers,
                "todo": {
                    name: {
                        "title": trial.title,
                        "kind": [trial.cell.arm, trial.cell.augment, trial.cell.epsilon < math.inf],
                    }
                    for name, trial in todo.items()
                },
            }
        )

    def _hired(self, planned: Plan) -> Crew:
        """The processes that run trials: the same for a search and for what is compared."""
        if self._crew is None:
            ray = RayStart(_num_cpus(), self._side.ray_dir)
            self._side.tell({"event": "stage", "text": "starting Ray"})
            from simulations.comparison.workers import Crew
            from simulations.hosting.hosts import fitting, with_gpus

            ray.wait()
            asked = replace(planned.config.simulation, cpus_per_site=self._cpus_each(planned))
            each = with_gpus(asked, num_sites=self._most_workers(planned))
            num_workers = fitting(each)
            if num_workers == 0:
                raise RunFailed(
                    f"simulation.gpus_per_site={each.gpus_per_site:g}: this machine has no GPU of "
                    "which a trial could have so much"
                )
            self._crew = Crew(
                num_workers=num_workers,
                num_cpus=asked.cpus_per_site,
                num_gpus=each.gpus_per_site or 0.0,
            )
        return self._crew

    def _train(self, crew: Crew, todo: dict[str, Trial]) -> None:
        from simulations.comparison.trial import Job
        from simulations.comparison.workers import Ending

        def ended(ending: Ending) -> None:
            if ending.problem is not None:
                self._problems[ending.name] = ending.problem
            self._side.tell(
                {
                    "event": "ended",
                    "name": ending.name,
                    "problem": ending.problem,
                    "seconds": ending.seconds,
                    "attempts": ending.attempts,
                    "auroc": self._auroc(ending.name),
                }
            )

        crew.run(
            [
                Job(name=name, start=trial.start, folder=self._folder, config=trial.config)
                for name, trial in todo.items()
            ],
            began=lambda name: self._side.tell({"event": "began", "name": name}),
            ended=ended,
        )

    def _auroc(self, name: str) -> float | None:
        path = self._folder.finished(name).result
        if not path.is_file():
            return None
        return json.loads(path.read_text())["final"]["test"]["auroc"]

    def _compare(self, planned: Plan, tuning: Tuning | None) -> int:
        from simulations.comparison.page import write
        from simulations.comparison.summary import compare
        from simulations.comparison.tables import as_csv

        self._side.tell({"event": "stage", "text": "comparing"})
        comparison = compare(self._request, planned, self._folder, self._problems, tuning)
        write_atomically(self._folder.table, as_csv(comparison))
        text = json.dumps(comparison, indent=1, allow_nan=False) + "\n"
        write_atomically(self._folder.result, text)
        self._side.tell({"event": "stage", "text": "drawing the page"})
        write(comparison, self._folder.path)
        self._side.tell({"event": "done"})
        return EXIT_FAILED if comparison["missing"] else 0


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(_code)  # Ray is ended by the parent, with everything else
