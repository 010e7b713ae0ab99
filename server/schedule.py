"""Which sites each round asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from common.config import Config
from common.errors import UsageError
from common.seeds import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The sites of every round, drawn uniformly before the first one (public).

    Each round is drawn anew from the run's seed and the round's number alone, so a run that goes
    on asks the same sites. Nothing is gained for privacy: the server knows who is asked, and it is
    not trusted, so each round in which a site trains is charged in full.

    Attributes:
        seed: of the run.
        num_sites: approved sites.
        sites_per_round: how many of them a round asks; all if ``None``.
        rounds: of the run.
    """

    seed: int
    num_sites: int
    sites_per_round: int | None
    rounds: int

    @classmethod
    def of(cls, config: Config) -> Schedule:
        """As configured."""
        federation = config.federation
        return cls(
            seed=config.seed,
            num_sites=federation.parties.num_sites,
            sites_per_round=federation.sites_per_round,
            rounds=federation.rounds,
        )

    def asked(self, number: int, sites: Collection[str]) -> set[str]:
        """Which of the approved ``sites`` are drawn in round ``number``.

        Raises:
            UsageError: if a round asks only some, and there are not as many sites as drawn from.
        """
        if self.sites_per_round is None:
            return set(sites)
        if len(sites) != self.num_sites:
            raise UsageError(
                f"federation.sites_per_round={self.sites_per_round}: drawn from {self.num_sites} "
                f"sites, and there are {len(sites)}; set federation.sites or num_sites"
            )
        ordered = sorted(sites)
        return {ordered[place] for place in self._drawn(number)}

    def rounds_of(self, site: str, sites: Collection[str]) -> list[int]:
        """The rounds in which ``site``, one of ``sites``, is drawn."""
        numbers = range(1, self.rounds + 1)
        if self.sites_per_round is None:
            return list(numbers)
        place = sorted(sites).index(site)
        return [number for number in numbers if place in self._drawn(number)]

    @property
    def most_rounds(self) -> int:
        """Rounds of the site that is drawn most often: what the noise has to last for.

        >>> everyone = Schedule(seed=2, num_sites=9, sites_per_round=None, rounds=20)
        >>> some = Schedule(seed=2, num_sites=9, sites_per_round=3, rounds=20)
        >>> everyone.most_rounds, some.most_rounds
        (20, 9)
        """
        if self.sites_per_round is None:
            return self.rounds
        times = Counter(p for n in range(1, self.rounds + 1) for p in self._drawn(n))
        return max(times.values())

    def _drawn(self, number: int) -> frozenset[int]:
        assert self.sites_per_round is not None
        return _draw(self.seed, number, self.num_sites, self.sites_per_round)


@lru_cache(maxsize=4096)
def _draw(seed: int, number: int, num_sites: int, count: int) -> frozenset[int]:
    """``count`` of the first ``num_sites`` numbers; a hash orders them, on every machine alike."""
    order = sorted(range(num_sites), key=lambda place: derive_seed(seed, "asked", number, place))
    return frozenset(order[:count])
