"""``fedward bench secagg``: bytes and seconds of one secure sum, against a plain one."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from common.errors import UsageError

if TYPE_CHECKING:
    from common.privacy.keys import SiteKey
    from common.secure_aggregation.primitives import Vector
    from common.secure_aggregation.roster import Roster
    from common.secure_aggregation.site_round import SiteRound
    from common.secure_aggregation.terms import Terms

Found = TypeVar("Found")
_NUM_PATIENTS, _RATE, _NOISE = 2000, 0.25, 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One round. Seconds are of a processor's work; the network's are not among them.

    Attributes:
        site_seconds: protocol work of one site (median over sites).
        noise_seconds: drawing one site's share of noise.
        server_seconds: of the server, all sites together.
        plain_seconds: of the server where it adds plain vectors of 32-bit numbers.
        site_sent_bytes: messages of one site (median), and what it receives, model left out.
        plain_bytes: the update of one site without secure aggregation.
    """

    num_weights: int
    num_sites: int
    num_missing: int
    modulus_bits: int
    site_seconds: float
    noise_seconds: float
    server_seconds: float
    plain_seconds: float
    site_sent_bytes: int
    site_received_bytes: int
    plain_bytes: int


def secagg(
    weights: Annotated[
        list[int] | None, typer.Option(min=1, help="Trainable weights; may be repeated.")
    ] = None,
    sites: Annotated[
        list[int] | None, typer.Option(min=2, max=100, help="Sites; may be repeated.")
    ] = None,
    missing: Annotated[
        float, typer.Option(min=0.0, max=0.4, help="Share of sites that die after masking starts.")
    ] = 0.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Bytes and seconds of a round of secure aggregation, all parts of it in this process."""
    from common.files import check_out, write_atomically

    check_out("--json", json_file)
    costs: list[Cost] = []
    header = ("weights", "sites", "missing", "site s", "noise s", "server s", "plain s")
    widths = "".join(f"{name:>10}" for name in header)
    typer.echo(f"{widths}{'sent kB':>11}{'received kB':>13}{'plain kB':>11}")
    for num_weights in weights or [1_500, 300_000]:
        for num_sites in sites or [5, 20, 50]:
            cost = measure(num_weights, num_sites, num_missing=int(missing * num_sites))
            costs.append(cost)
            typer.echo(
                f"{num_weights:>10}{num_sites:>10}{cost.num_missing:>10}"
                f"{cost.site_seconds:>10.3f}{cost.noise_seconds:>10.3f}"
                f"{cost.server_seconds:>10.3f}{cost.plain_seconds:>10.4f}"
                f"{cost.site_sent_bytes / 1e3:>11.1f}{cost.site_received_bytes / 1e3:>13.1f}"
                f"{cost.plain_bytes / 1e3:>11.1f}"
            )
    if json_file is not None:
        text = json.dumps({"costs": [asdict(cost) for cost in costs]}, indent=2) + "\n"
        try:
            write_atomically(json_file, text)
        except OSError as error:
            raise UsageError(f"{json_file}: {error.strerror}") from error


class _Clock:
    """Work of each site and of the server, and bytes that each site sends and receives."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}

    def of(self, name: str, work: Callable[[], Found]) -> Found:
        began = time.process_time()
        found = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        return found

    def note(self, name: str, *, sent: bytes = b"", received: bytes = b"") -> None:
        self.sent[name] = self.sent.get(name, 0) + len(sent)
        self.received[name] = self.received.get(name, 0) + len(received)


def measure(num_weights: int, num_sites: int, *, num_missing: int = 0) -> Cost:
    """One whole round with real keys, shares and masks.

    Raises:
        UsageError: if so many sites may not be missing.
        ArithmeticError: if the sum is not that of the vectors.
    """
    import numpy as np

    from common.privacy.keys import SiteKey
    from common.secure_aggregation.discrete_gaussian import discrete_gaussian
    from common.secure_aggregation.mechanism import Parties, design
    from common.secure_aggregation.randomness import RandomWords
    from common.secure_aggregation.roster import Roster
    from common.secure_aggregation.rounding import into_ring
    from common.secure_aggregation.terms import Terms

    parties = Parties(num_sites=num_sites, max_dropouts=num_missing)
    mechanism = design(
        noise_multiplier=_NOISE,
        num_weights=num_weights,
        num_patients=_NUM_PATIENTS,
        sampling_rate=_RATE,
        parties=parties,
    )
    keys = {f"site-{number:03d}": SiteKey.generate() for number in range(num_sites)}
    roster = Roster.of({name: key.public_key for name, key in keys.items()})
    terms = Terms(
        run_id="bench",
        round=1,
        roster=roster.digest,
        num_sites=num_sites,
        threshold=parties.threshold,
        max_dropouts=num_missing,
        max_colluders=0,
        num_weights=num_weights,
        modulus_bits=mechanism.modulus_bits,
        subject="0" * 64,
    )
    clock = _Clock()
    noise = clock.of(
        "noise", lambda: discrete_gaussian(mechanism.share_std, num_weights, RandomWords())
    )
    vector = into_ring(noise, mechanism.modulus_bits)
    total, count = _Round(terms, keys, clock).total(roster, vector, num_missing)
    if not np.array_equal(total, vector * vector.dtype.type(count)):
        raise ArithmeticError("the sum is not that of the vectors")
    plain, sums = noise.astype(np.float32), np.zeros(num_weights, dtype=np.float32)

    def add_plain() -> None:
        for _ in range(count):
            np.add(sums, plain, out=sums)

    clock.of("plain", add_plain)
    alive = list(keys)[num_missing:]
    return Cost(
        num_weights=num_weights,
        num_sites=num_sites,
        num_missing=num_missing,
        modulus_bits=mechanism.modulus_bits,
        site_seconds=statistics.median(clock.seconds[name] for name in alive),
        noise_seconds=clock.seconds["noise"],
        server_seconds=clock.seconds["server"],
        plain_seconds=clock.seconds["plain"],
        site_sent_bytes=int(statistics.median(clock.sent[name] for name in alive)),
        site_received_bytes=int(statistics.median(clock.received[name] for name in alive)),
        plain_bytes=plain.nbytes,
    )


class _Round:
    """One round whose every step is timed; some sites fall silent before they send a vector."""

    def __init__(self, terms: Terms, keys: Mapping[str, SiteKey], clock: _Clock) -> None:
        self._terms, self._keys, self._clock = terms, keys, clock
        self._sites: dict[str, SiteRound] = {}

    def total(self, roster: Roster, vector: Vector, num_missing: int) -> tuple[Vector, int]:
        """The sum where each site sends ``vector``, and how many are in it."""
        from common.secure_aggregation.server_round import ServerRound
        from common.secure_aggregation.site_round import begin

        server, terms = ServerRound(self._terms, roster), self._terms
        for name, key in self._keys.items():
            self._sites[name], data = self._clock.of(
                name, lambda name=name, key=key: begin(terms, roster, name=name, key=key)
            )
            self._to(server.take_keys, name, data)
        keys = self._server(server.keys)
        for name in self._keys:
            data = self._step(name, keys, lambda site: site.share(keys))
            self._to(server.take_shares, name, data)
        shares = self._server(server.shares)
        for name in list(self._keys)[num_missing:]:
            sealed = shares[name]
            data = self._step(name, sealed, lambda site, sealed=sealed: site.mask(sealed, vector))
            self._to(server.take_masked, name, data)
        listed, survivors = self._server(server.survivors_list), server.survivors
        for name in survivors:
            key = self._keys[name]
            data = self._step(name, listed, lambda site, key=key: site.agree(listed, key))
            self._to(server.take_agreement, name, data)
        agreements = self._server(server.agreements)
        for name in survivors:
            data = self._step(name, agreements, lambda site: site.reveal(agreements))
            self._to(server.take_reveal, name, data)
        return self._server(server.total), len(survivors)

    def _step(
        self, name: str, question: bytes, answer: Callable[[SiteRound], tuple[SiteRound, bytes]]
    ) -> bytes:
        self._clock.note(name, received=question)
        self._sites[name], data = self._clock.of(name, lambda: answer(self._sites[name]))
        return data

    def _to(self, take: Callable[[str, bytes], None], name: str, data: bytes) -> None:
        self._clock.note(name, sent=data)
        self._clock.of("server", lambda: take(name, data))

    def _server(self, work: Callable[[], Found]) -> Found:
        return self._clock.of("server", work)
