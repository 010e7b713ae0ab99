"""What there is to compare on: the study, dealt out once, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import Config
from server.recipe import default_delta
from simulations.sites import dealt

_NO_SECRET = bytes(16)  # nothing of what it hides is kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Who has how many patients (public).

    Attributes:
        sites: number of training patients by site name, in order of names.
        num_images: training images of all sites.
        delta: for every trial: of all patients together, whoever trains.
    """

    sites: dict[str, int]
    num_images: int
    delta: float


def survey(config: Config, phantom_dir: Path) -> Survey:
    """Read the study's table; no image is read.

    Raises:
        UsageError: if the study cannot be read, or cannot be dealt out as asked.
    """
    _, _, shares = dealt(config, phantom_dir, _NO_SECRET)
    sites = {
        name: len({record.patient for record in records})
        for name, records in sorted(shares.items())
    }
    delta = config.privacy.delta
    return Survey(
        sites=sites,
        num_images=sum(map(len, shares.values())),
        delta=default_delta(sum(sites.values())) if delta is None else delta,
    )
