"""Sites and a server that pass each other bytes, with sites that fall silent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest

from common.privacy.keys import SiteKey
from common.secure_aggregation.primitives import Vector
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.server_round import ServerRound
from common.secure_aggregation.site_round import SiteRound, begin
from common.secure_aggregation.terms import Terms, least_threshold

NEVER = 6


@lru_cache(maxsize=128)
def key_of(name: str) -> SiteKey:
    return SiteKey(hashlib.sha256(name.encode()).digest())


def roster_of(count: int) -> Roster:
    names = [f"hospital-{number:02d}" for number in range(count)]
    return Roster.of({name: key_of(name).public_key for name in names})


def terms_of(roster: Roster, **changes: object) -> Terms:
    count = len(roster.names)
    fields: dict[str, object] = {
        "run_id": "run",
        "round": 1,
        "roster": roster.digest,
        "num_sites": count,
        "threshold": least_threshold(count, 0),
        "max_dropouts": 0,
        "max_colluders": 0,
        "num_weights": 7,
        "modulus_bits": 32,
        "subject": "0" * 64,
    }
    return Terms.from_dict({**fields, **changes})


def vectors_of(terms: Terms, roster: Roster, seed: int = 0) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    dtype = np.uint32 if terms.modulus_bits == 32 else np.uint64
    high = np.iinfo(dtype).max
    return {
        name: rng.integers(0, high, terms.num_weights, dtype=dtype, endpoint=True)
        for name in roster.names
    }


def plain_sum(vectors: Mapping[str, Vector], names: tuple[str, ...]) -> list[int]:
    """In Python's own integers."""
    bits = next(iter(vectors.values())).dtype.itemsize * 8
    columns = zip(*(vectors[name].tolist() for name in names), strict=True)
    return [sum(column) % 2**bits for column in columns]


@dataclass
class Drill:
    """A round over real bytes. ``silent`` says before which of five answers a site dies."""

    terms: Terms
    roster: Roster
    vectors: Mapping[str, Vector]
    silent: Mapping[str, int] = field(default_factory=dict)
    sites: dict[str, SiteRound] = field(default_factory=dict)
    seen: dict[str, bytes] = field(default_factory=dict)  # masked vectors, as the server got them
    phases: int = 0

    def run(self) -> tuple[Vector, tuple[str, ...]]:
        server = ServerRound(self.terms, self.roster)
        for name in self._alive(1, self.roster.names):
            state, answer = begin(self.terms, self.roster, name=name, key=key_of(name))
            self.sites[name] = state
            server.take_keys(name, answer)
        keys = server.keys()
        for name in self._alive(2, self.sites):
            server.take_shares(name, self._step(name, lambda site: site.share(keys)))
        shares = server.shares()
        for name in self._alive(3, shares):
            self.seen[name] = self._step(
                name, lambda site, name=name: site.mask(shares[name], self.vectors[name])
            )
            server.take_masked(name, self.seen[name])
        survivors = server.survivors_list()
        for name in self._alive(4, server.survivors):
            server.take_agreement(
                name,
                self._step(name, lambda site, name=name: site.agree(survivors, key_of(name))),
            )
        agreements = server.agreements()
        for name in self._alive(5, server.survivors):
            server.take_reveal(name, self._step(name, lambda site: site.reveal(agreements)))
        return server.total(), server.survivors

    def _alive(self, phase: int, names: Iterable[str]) -> list[str]:
        self.phases = phase
        return [name for name in sorted(names) if self.silent.get(name, NEVER) > phase]

    def _step(self, name: str, answer: Callable[[SiteRound], tuple[SiteRound, bytes]]) -> bytes:
        # every state goes through bytes, as it does where processes come and go
        state = SiteRound.from_bytes(self.sites[name].to_bytes())
        self.sites[name], data = answer(state)
        return data


def enough(drill: Drill) -> bool:
    """Whether the round can end, counted by hand."""
    left = {
        phase: sum(drill.silent.get(name, NEVER) > phase for name in drill.roster.names)
        for phase in range(1, 6)
    }
    by_noise = all(left[phase] >= drill.terms.least_in_sum for phase in (1, 2, 3))
    return by_noise and all(left[phase] >= drill.terms.threshold for phase in (4, 5))


class Federation:
    """What the tests of this folder need of the above."""

    key_of = staticmethod(key_of)
    roster_of = staticmethod(roster_of)
    terms_of = staticmethod(terms_of)
    vectors_of = staticmethod(vectors_of)
    plain_sum = staticmethod(plain_sum)
    enough = staticmethod(enough)
    Drill = Drill

    @staticmethod
    def drill(count: int, seed: int = 0, **changes: object) -> Drill:
        roster = roster_of(count)
        terms = terms_of(roster, **changes)
        return Drill(terms=terms, roster=roster, vectors=vectors_of(terms, roster, seed))


@pytest.fixture(scope="session")
def federation() -> type[Federation]:
    return Federation
