"""When enough sites take part for a round to count."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common.config import FederationConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Quorum:
    """How many sites, and what share of the patients of all sites that were ever seen.

    >>> quorum = Quorum(min_sites=2, min_patient_share=0.5)
    >>> patients = {"a": 60, "b": 30, "c": 10}
    >>> quorum.met({"a", "c"}, patients), quorum.met({"b", "c"}, patients)
    (True, False)
    """

    min_sites: int
    min_patient_share: float

    @classmethod
    def of(cls, config: FederationConfig) -> Quorum:
        """As configured."""
        return cls(min_sites=config.min_sites, min_patient_share=config.min_patient_share)

    def met(self, sites: Collection[str], patients: Mapping[str, int]) -> bool:
        """Whether ``sites`` are enough; ``patients`` counts those of every site seen so far."""
        total = sum(patients.values())
        share = sum(patients.get(name, 0) for name in sites) / total if total else 0.0
        return len(sites) >= self.min_sites and share >= self.min_patient_share
