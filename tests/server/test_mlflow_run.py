"""MLflow: refused in one line where it is not; with it, the figures in a real file store."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from common.config import TrackingConfig
from common.errors import UsageError
from server.mlflow_run import MlflowRun
from server.tracking import Tracking

INSTALLED = importlib.util.find_spec("mlflow") is not None
with_mlflow = pytest.mark.skipif(
    not INSTALLED, reason="mlflow, an extra of this package, is not installed here"
)
ROUND = {
    "event": "round",
    "round": 1,
    "seconds": 2.5,
    "evaluation": {"auroc": 0.625},
    "sites": {"hospital-1": {"status": "trained", "epsilon": 1.5}},
}
DONE = {"event": "done", "result": {"final": {"round": 1, "test": {"auroc": 0.75}}}}


def test_nothing_is_asked_for_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by the variable that MLflow itself reads."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert MlflowRun.begin(TrackingConfig(), run_id="r", title="t") is None


def test_mlflow_that_is_not_installed_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if INSTALLED:
        monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError) as caught:
        MlflowRun.begin(TrackingConfig(mlflow="http://127.0.0.1:9"), run_id="r", title="t")
    text = str(caught.value)
    assert text.startswith("tracking.mlflow=http://127.0.0.1:9: MLflow is not installed; pip")
    assert "\n" not in text


@pytest.mark.parametrize(
    "address",
    ["", "mlruns", "./mlruns", "/var/mlruns", "sqlite:///mlflow.db", "http:", "localhost:5000"],
)
def test_an_address_that_would_end_up_in_the_runs_own_folder_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"^tracking\.mlflow=.*give a whole address"):
        TrackingConfig(mlflow=address)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.org/path",
        "https://user@mlflow.example.org",
        "file:///var/mlruns",
        "sqlite:////var/mlflow.db",
    ],
)
def test_a_whole_address_is_taken(address: str) -> None:
    assert TrackingConfig(mlflow=address).mlflow == address


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="no password") as caught:
        TrackingConfig(mlflow="https://user:hunter2@mlflow.example.org")
    assert "hunter2" not in str(caught.value)


@pytest.fixture(autouse=True)
def _folders_as_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow 3 keeps runs in plain folders only if told so."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def begun(folder: Path, **changes: Any) -> MlflowRun:
    config = TrackingConfig(mlflow=folder.as_uri(), **changes)
    run = MlflowRun.begin(config, run_id="0123abcd", title="demo")
    assert run is not None
    return run


def stored(folder: Path, experiment: str = "fedward") -> Any:
    """The only run of an experiment, and its client."""
    import mlflow  # pyright: ignore[reportMissingImports]

    client = mlflow.MlflowClient(tracking_uri=folder.as_uri())
    number = client.get_experiment_by_name(experiment).experiment_id
    (run,) = client.search_runs([number])
    return client, run


@with_mlflow
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_figures_are_in_the_store_under_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "mlruns"
    with Tracking(tmp_path / "tensorboard", begun(folder, experiment="chest")) as tracking:
        tracking.take(ROUND)
        _, run = stored(folder, "chest")
        assert run.info.status == "RUNNING"
        tracking.take(DONE)
    client, run = stored(folder, "chest")
    assert run.info.run_name == "demo"
    assert run.info.status == "FINISHED"
    assert run.data.tags["fedward.run_id"] == "0123abcd"
    assert run.data.metrics == {
        "round/seconds": 2.5,
        "validation/auroc": 0.625,
        "sites/trained": 1.0,
        "sites/refused": 0.0,
        "sites/failed": 0.0,
        "epsilon/hospital-1": 1.5,
        "test/auroc": 0.75,
    }
    (metric,) = client.get_metric_history(run.info.run_id, "epsilon/hospital-1")
    assert metric.step == 1


@with_mlflow
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_a_run_that_goes_on_adds_to_the_one_it_began(tmp_path: Path) -> None:
    folder = tmp_path / "mlruns"

    class PowerCut(Exception):
        pass

    def cut() -> None:
        with Tracking(tmp_path / "tensorboard", begun(folder)) as tracking:
            tracking.take(ROUND)
            raise PowerCut

    with pytest.raises(PowerCut):
        cut()
    _, run = stored(folder)
    assert run.info.status == "FAILED"
    with Tracking(tmp_path / "tensorboard", begun(folder)) as tracking:
        tracking.take({**ROUND, "round": 2})
        tracking.take(DONE)
    client, run = stored(folder)
    assert run.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "epsilon/hospital-1")]
    assert sorted(steps) == [1, 2]


@with_mlflow
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_a_store_that_is_lost_ends_the_tracking_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mlruns"
    run = begun(folder)
    client, stored_run = stored(folder)
    client.delete_run(stored_run.info.run_id)
    with caplog.at_level(logging.WARNING), Tracking(tmp_path / "tensorboard", run) as tracking:
        tracking.take(ROUND)
        tracking.take({**ROUND, "round": 2})
    assert caplog.text.count("MLflow is lost") == 1


@with_mlflow
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_an_address_that_does_not_answer_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UsageError, match=r"^tracking\.mlflow=http://127\.0\.0\.1:9: ") as caught:
        MlflowRun.begin(TrackingConfig(mlflow="http://127.0.0.1:9"), run_id="r", title="t")
    assert "\n" not in str(caught.value)
