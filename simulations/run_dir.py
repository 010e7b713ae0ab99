"""The folder of a run: what lies where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDir:
    """Paths inside the folder of one run. ``work`` is removed when the run ends."""

    path: Path

    @property
    def result(self) -> Path:
        """What came out, for programs."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """What came out, for people."""
        return self.path / "report.html"

    @property
    def model_card(self) -> Path:
        """What the final model is for, and what it is not."""
        return self.path / "model_card.md"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def weights(self) -> Path:
        """The final model."""
        return self.path / "weights.safetensors"

    @property
    def predictions(self) -> Path:
        """What the final model said of each test image; derived from patients."""
        return self.path / "predictions.csv"

    @property
    def checkpoints(self) -> Path:
        """State after the last rounds, from which a stopped run goes on."""
        return self.path / "checkpoints"

    @property
    def tracking(self) -> Path:
        """Event files for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        """What Flower, Ray and the sites printed."""
        return self.path / "log.txt"

    @property
    def run_id(self) -> Path:
        """The run's name in every ledger."""
        return self.path / "run_id"

    @property
    def phantoms(self) -> Path:
        """Generated phantoms."""
        return self.path / "phantoms"

    @property
    def work(self) -> Path:
        """The empty folder that the run works in, and decoded images."""
        return self.path / "work"

    @property
    def pool(self) -> Path:
        """Decoded synthetic images that the run uses."""
        return self.work / "pool"

    @property
    def initial(self) -> Path:
        """Where the weights come from that the run begins with."""
        return self.work / "initial.json"

    @property
    def start(self) -> Path:
        """What the model begins with: trained on synthetic images, centred."""
        return self.path / "start.safetensors"

    @property
    def pretraining(self) -> Path:
        """Where training on synthetic images has come to, while it lasts."""
        return self.path / "pretraining.safetensors"

    @property
    def images(self) -> Path:
        """Synthetic images that the run made."""
        return self.path / "images"

    @property
    def grid(self) -> Path:
        """A picture of some of them."""
        return self.path / "grid.png"

    @property
    def quality(self) -> Path:
        """What they are worth; derived from patients."""
        return self.path / "quality.json"

    def generator(self, site: str) -> Path:
        """The generator that made them, or that of one hospital."""
        return self.path / (f"generator-{site}.safetensors" if site else "generator.safetensors")

    def cohort(self, site: str) -> Path:
        """Decoded images of a simulated hospital."""
        return self.work / "cohorts" / site

    def ledger(self, site: str) -> Path:
        """The privacy ledger of a simulated hospital."""
        return self.path / "ledger" / f"{site}.sqlite"

    def replies(self, site: str) -> Path:
        """A simulated hospital's last reply, for a request that repeats."""
        return self.path / "ledger" / "replies" / site
