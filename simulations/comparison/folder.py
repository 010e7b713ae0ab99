"""The folder of a comparison: what lies where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simulations.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Paths inside the folder of one comparison. ``work`` is removed when the command ends."""

    path: Path

    @property
    def request(self) -> Path:
        """What was asked for last; marks the folder as a comparison's."""
        return self.path / "request.json"

    @property
    def result(self) -> Path:
        """What came out, for programs."""
        return self.path / "comparison.json"

    @property
    def page(self) -> Path:
        """What came out, for people; figures and tables as files lie beside it."""
        return self.path / "comparison.html"

    @property
    def table(self) -> Path:
        """One row for each way of training, for a spreadsheet."""
        return self.path / "comparison.csv"

    @property
    def cache(self) -> Path:
        """Decoded images and features of frozen backbones."""
        return self.path / "cache"

    @property
    def phantoms(self) -> Path:
        """Generated phantoms."""
        return self.path / "phantoms"

    @property
    def log(self) -> Path:
        """What Ray and the trials printed."""
        return self.path / "log.txt"

    @property
    def work(self) -> Path:
        """Where trials run until they are done."""
        return self.path / "work"

    @property
    def trials(self) -> Path:
        """Finished trials, by configuration hash."""
        return self.path / "trials"

    def unfinished(self, name: str) -> RunDir:
        """The folder of a trial while it runs."""
        return RunDir(path=self.work / name)

    def finished(self, name: str) -> RunDir:
        """The folder of a trial that has a result."""
        return RunDir(path=self.trials / name)

    def start(self, name: str) -> Path:
        """A model that was trained on synthetic images, shared by the trials that begin with it."""
        return self.path / "starts" / f"{name}.safetensors"
