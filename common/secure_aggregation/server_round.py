"""The server's part of one round: collects, passes on, and takes the masks off the sum."""

from __future__ import annotations

import numpy as np

from common.privacy import keys
from common.secure_aggregation import primitives
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.messages import (
    Advertisement,
    Reveal,
    agreement,
    pack_advertised,
    pack_agreements,
    pack_sealed,
    pack_survivors,
    read_advertised,
    read_agreements,
    read_masked,
    read_reveal,
    read_sealed,
)
from common.secure_aggregation.primitives import Vector
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.site_round import pair_key, public_mask_key
from common.secure_aggregation.terms import Terms


class ServerRound:
    """One sum, from keys to `total`.

    ``take_*`` reads a site's answer, and raises `Aborted` if that answer is no good: the site then
    counts as missing. The others give the next question, and raise `Aborted` if too few sites are
    left: the round is then over.

    Guarantees: `total` is the sum, modulo the ring, of the vectors of the sites in `survivors`, or
    there is none. Two sums of one round are never made.
    """

    def __init__(self, terms: Terms, roster: Roster) -> None:
        self._terms, self._roster = terms, roster
        self._keys: dict[str, Advertisement] = {}
        self._sealed: dict[str, dict[str, bytes]] = {}
        self._sum = primitives.zeros(terms.num_weights, terms.modulus_bits)
        self._in_sum: set[str] = set()
        self._signatures: dict[str, str] = {}
        self._reveals: dict[str, Reveal] = {}
        self._closed = 0  # phases that no answer may enter any more

    @property
    def survivors(self) -> tuple[str, ...]:
        """Sites in the sum."""
        return tuple(sorted(self._in_sum))

    def take_keys(self, site: str, data: bytes) -> None:
        """A site's advertisement."""
        self._open(1, site in self._roster.names and site not in self._keys)
        found = read_advertised(self._terms, data)
        if len(found) != 1 or found[0].site != site:
            raise Aborted("a site sent other keys than its own")
        if not found[0].valid(self._terms, self._roster.key_of(site)):
            raise Aborted("a site's keys are not signed by its hospital")
        self._keys[site] = found[0]

    def keys(self) -> bytes:
        """All keys, for every site that gave its own."""
        self._close(1, len(self._keys), "gave keys")
        return pack_advertised(self._terms, (self._keys[n] for n in sorted(self._keys)))

    def take_shares(self, site: str, data: bytes) -> None:
        """A site's sealed shares for the others."""
        self._open(2, site in self._keys and site not in self._sealed)
        sealed = read_sealed(self._terms, data)
        if set(sealed) != set(self._keys) - {site}:
            raise Aborted("a site gave no share to one of the others")
        self._sealed[site] = sealed

    def shares(self) -> dict[str, bytes]:
        """What each site that shared gets, by receiver."""
        self._close(2, len(self._sealed), "gave shares")
        sharers = sorted(self._sealed)
        return {
            name: pack_sealed(
                self._terms,
                {other: self._sealed[other][name] for other in sharers if other != name},
            )
            for name in sharers
        }

    def take_masked(self, site: str, data: bytes) -> None:
        """A site's masked vector; it is added and forgotten."""
        self._open(3, site in self._sealed and site not in self._in_sum)
        np.add(self._sum, read_masked(self._terms, data), out=self._sum)
        self._in_sum.add(site)

    def survivors_list(self) -> bytes:
        """Who is in the sum, for each of them to sign."""
        self._close(3, len(self._in_sum), "are in the sum")
        return pack_survivors(self._terms, self._in_sum)

    def take_agreement(self, site: str, data: bytes) -> None:
        """A site's signature under the list."""
        self._open(4, site in self._in_sum)
        signature = read_agreements(self._terms, data).get(site, "")
        signed = agreement(self._terms, self._sealed, self._in_sum)
        if not keys.verify(self._roster.key_of(site), signed, signature):
            raise Aborted("a site signed another list")
        self._signatures[site] = signature

    def agreements(self) -> bytes:
        """All signatures, for every site that gave one."""
        self._close(4, len(self._signatures), "signed the list", self._terms.threshold)
        return pack_agreements(self._terms, self._signatures)

    def take_reveal(self, site: str, data: bytes) -> None:
        """A site's shares of masks and keys."""
        self._open(5, site in self._signatures)
        reveal = read_reveal(self._terms, data)
        dropped = set(self._sealed) - self._in_sum
        if set(reveal.mask_shares) != self._in_sum or set(reveal.key_shares) != dropped:
            raise Aborted("a site gave other shares than those it was asked for")
        self._reveals[site] = reveal

    def total(self) -> Vector:
        """The sum without masks.

        Raises:
            Aborted: if too few sites gave their shares, or these lead to other secrets than those
                that were advertised.
        """
        self._close(5, len(self._reveals), "gave their shares", self._terms.threshold)
        for name in self.survivors:
            self._remove_own_mask(name)
        for name in sorted(set(self._sealed) - self._in_sum):
            self._remove_pair_masks(name)
        return self._sum

    def _remove_own_mask(self, name: str) -> None:
        terms = self._terms
        seed = self._combined({n: reveal.mask_shares[name] for n, reveal in self._reveals.items()})
        if primitives.commitment(seed, terms.context) != self._keys[name].commitment:
            raise Aborted("shares of a site's mask do not fit together")
        key = primitives.derive(seed, "own mask", terms.context, name.encode())
        primitives.add_mask(self._sum, key, negative=True)

    def _remove_pair_masks(self, name: str) -> None:
        """What the survivors masked together with ``name``, which is not in the sum."""
        terms = self._terms
        seed = self._combined({n: reveal.key_shares[name] for n, reveal in self._reveals.items()})
        if public_mask_key(terms, seed) != self._keys[name].mask_key:
            raise Aborted("shares of a site's key do not fit together")
        for other in self.survivors:
            key = pair_key(terms, seed, name, self._keys[other])
            # The survivor added it where its own name comes first.
            primitives.add_mask(self._sum, key, negative=other < name)

    def _combined(self, shares: dict[str, bytes]) -> bytes:
        points = {self._roster.number_of(name): share for name, share in shares.items()}
        return primitives.combine(points, threshold=self._terms.threshold)

    def _open(self, phase: int, expected: bool) -> None:
        if self._closed != phase - 1 or not expected:
            raise Aborted("an answer came twice, out of order, or of a site that has no part in it")

    def _close(self, phase: int, count: int, what: str, least: int | None = None) -> None:
        if self._closed != phase - 1:
            raise Aborted("the phases of a round have an order, and each comes once")
        needed = self._terms.least_in_sum if least is None else least
        if count < needed:
            self._closed = 6
            raise Aborted(f"{count} sites {what}, {needed} are needed")
        self._closed = phase
