"""Figures of a run for people who have a tracking tool: TensorBoard's files, and MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from common.messages import Status
from server.mlflow_run import MlflowRun


class Tracking:
    """Writes what a run tells of its rounds; the round is the step. Names: docs/server.md.

    Every figure is in ``result.json`` as well: nothing leaves a site for this.

    Args:
        folder: of the event files.
        mlflow: where the same figures go, if anywhere.
    """

    def __init__(self, folder: Path, mlflow: MlflowRun | None = None) -> None:
        self._mlflow = mlflow
        self._done = False
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns()}"  # a run that goes on within a second adds a file of its own
        self._writer = EventsWriter(str(folder / "events"), suffix)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        if self._mlflow is not None:
            self._mlflow.end(completed=self._done)

    def take(self, event: dict[str, Any]) -> None:
        """Take in one event; what is known of a round is on disk when this returns."""
        figures = list(_figures(event))
        self._done |= event["event"] == "done"
        for name, value, step in figures:
            told = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._writer.write_event(told)
        self._writer.flush()
        if self._mlflow is not None:
            self._mlflow.log(figures)


def _figures(event: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    match event["event"]:
        case "round":
            yield from _of_round(event, event["round"])
        case "done" if event["result"].get("final") is not None:
            final = event["result"]["final"]
            yield "test/auroc", final["test"]["auroc"], final["round"]
        case _:
            pass


def _of_round(record: dict[str, Any], number: int) -> Iterator[tuple[str, float, int]]:
    yield "round/seconds", record["seconds"], number
    auroc = (record["evaluation"] or {}).get("auroc")
    if auroc is not None:
        yield "validation/auroc", auroc, number
    statuses = [site["status"] for site in record["sites"].values()]
    for status in Status:
        yield f"sites/{status.value}", statuses.count(status.value), number
    for name, site in record["sites"].items():
        if site["epsilon"] is not None:
            yield f"epsilon/{name}", site["epsilon"], number
