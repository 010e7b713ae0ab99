"""Where figures of a run go beside its own folder."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from common.config.check import require
from common.errors import UsageError


@dataclass(kw_only=True)
class TrackingConfig:
    """MLflow, for people who have it; TensorBoard event files are always written.

    ``mlflow`` is the address of a tracking server or store, and ``experiment`` the name that its
    runs are listed under. A password belongs into MLFLOW_TRACKING_PASSWORD: this is written into
    the run's files.
    """

    mlflow: str | None = None
    experiment: str = "fedward"

    def __post_init__(self) -> None:
        require(bool(self.experiment), "tracking.experiment", "''", "name one")
        if self.mlflow is None:
            return
        address = urlsplit(self.mlflow)
        if address.password is not None:
            raise UsageError(
                "tracking.mlflow: no password in the address, which the run's files repeat; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        # A run works in a folder of its own, which is gone when it ends.
        somewhere = bool(address.scheme and (address.netloc or address.path.startswith("/")))
        relative = address.scheme == "sqlite" and not address.path.startswith("//")
        require(
            somewhere and not relative,
            "tracking.mlflow",
            self.mlflow,
            "give a whole address, such as http://HOST:5000, file:///FOLDER or sqlite:////FILE",
        )
