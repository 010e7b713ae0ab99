"""What the jobs of a simulation share: the hospitals, and a way to let them train together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.config import Config
from server.checkpoint import Checkpoint, latest_checkpoint
from server.rounds import Outcome, Start
from simulations.run_dir import RunDir
from simulations.sites import Hospitals, SimulatedSites


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A run whose study has been dealt out.

    Attributes:
        config: of the run.
        run_dir: where it lies.
        hospitals: who takes part.
        observe: told of everything that happens, as plain values.
        federate: lets sites train one model after another, each from its start.
    """

    config: Config
    run_dir: RunDir
    hospitals: Hospitals = field(repr=False)
    observe: Callable[[dict[str, Any]], None]
    federate: Callable[[Sequence[Start], SimulatedSites], list[Outcome]]

    def stage(self, text: str) -> None:
        """Tell what comes next."""
        self.observe({"event": "stage", "text": text})

    def part(self, text: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        self.observe({"event": "part", "text": text, "done": done, "total": total})

    def sites(self, config: Config) -> SimulatedSites:
        """The simulated hospitals under ``config``."""
        return SimulatedSites(
            config=config,
            run_dir=self.run_dir,
            names=tuple(self.hospitals.sites),
            num_classes=self.hospitals.num_classes,
        )

    @property
    def run_id(self) -> str:
        """Names the run in every ledger."""
        return self.run_dir.run_id.read_text().strip()

    def approved(self) -> tuple[str, ...]:
        """Names of the sites that may train."""
        return tuple(self.config.federation.sites) or tuple(self.hospitals.sites)

    def checkpoint(self) -> Checkpoint | None:
        """The last finished round, if any."""
        return latest_checkpoint(self.run_dir.checkpoints)
