"""Figures of a run in MLflow, for people who have it: the extra ``mlflow`` of this package."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Self

from common.config import TrackingConfig
from common.errors import UsageError

_log = logging.getLogger("fedward.server")
_RUN_ID = "fedward.run_id"

Figure = tuple[str, float, int]


class MlflowRun:
    """One run at a tracking server or store. A run that goes on finds the one that it began.

    A server that is lost on the way ends the tracking and not the training: what is missing there
    stands in ``result.json`` and in the event files for TensorBoard.

    Args:
        client: an ``mlflow.MlflowClient``.
        number: of the run, as MLflow has it.
        lost: what the client raises.
    """

    def __init__(self, client: Any, number: str, lost: type[Exception]) -> None:
        self._client: Any = client
        self._number = number
        self._lost = lost

    @classmethod
    def begin(cls, config: TrackingConfig, *, run_id: str, title: str) -> Self | None:
        """The run called ``title`` whose tag ``fedward.run_id`` is ``run_id``; none if not asked.

        Raises:
            UsageError: if MLflow is not installed, or the address does not answer.
        """
        if config.mlflow is None:
            return None
        try:
            mlflow: Any = importlib.import_module("mlflow")
        except ImportError as error:
            raise UsageError(
                f"tracking.mlflow={config.mlflow}: MLflow is not installed; "
                "pip install 'fedward[mlflow]', or leave the setting out"
            ) from error
        lost = mlflow.exceptions.MlflowException
        try:
            client = mlflow.MlflowClient(tracking_uri=config.mlflow)
            return cls(client, _number(client, config.experiment, run_id, title), lost)
        except lost as error:
            text = " ".join(str(error).split())
            raise UsageError(f"tracking.mlflow={config.mlflow}: {text}") from error

    def log(self, figures: Iterable[Figure]) -> None:
        """Send figures: name, value and round."""
        moment = int(time.time() * 1000)
        for name, value, step in figures:
            self._tell("log_metric", name, value, timestamp=moment, step=step)

    def end(self, *, completed: bool) -> None:
        """Say that the run is over; one that failed can still go on."""
        self._tell("set_terminated", status="FINISHED" if completed else "FAILED")

    def _tell(self, what: str, *arguments: Any, **more: Any) -> None:
        if self._client is None:
            return
        try:
            getattr(self._client, what)(self._number, *arguments, **more)
        except self._lost:
            _log.warning("MLflow is lost; this run's figures go there no more", exc_info=True)
            self._client = None


def _number(client: Any, experiment: str, run_id: str, title: str) -> str:
    """The run that was begun under this tag before, or a new one."""
    known = client.get_experiment_by_name(experiment)
    folder = client.create_experiment(experiment) if known is None else known.experiment_id
    found = client.search_runs([folder], filter_string=f"tags.`{_RUN_ID}` = '{run_id}'")
    if found:
        number: str = found[0].info.run_id
        client.update_run(number, status="RUNNING")
        return number
    return client.create_run(folder, run_name=title, tags={_RUN_ID: run_id}).info.run_id
