"""A site's part of one round: four answers, each given once, in order.

The protocol of Bonawitz et al. 2017 ("Practical secure aggregation for privacy-preserving machine
learning", CCS), in its version against a server that does not follow it: identity keys sign the
keys of a round, and a site helps to take masks off only after enough sites signed one and the same
list of who is in the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, cast

from common.errors import UsageError
from common.privacy import keys
from common.secure_aggregation import primitives
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.frame import pack, unpack
from common.secure_aggregation.messages import (
    Advertisement,
    Reveal,
    agreement,
    pack_advertised,
    pack_agreements,
    pack_masked,
    pack_reveal,
    pack_sealed,
    read_advertised,
    read_agreements,
    read_sealed,
    read_survivors,
)
from common.secure_aggregation.primitives import SEED_BYTES, Vector
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.terms import Terms

_CHANNEL, _MASK = "channel key", "mask key"


class Phase(Enum):
    """What a site has said last."""

    advertised = "advertised"
    shared = "shared"
    masked = "masked"
    agreed = "agreed"
    revealed = "revealed"


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRound:
    """What a site knows in the middle of a round. Secret: it never leaves the site.

    Each answer gives the next state with it; the state before must be thrown away. An answer out
    of order is refused, so that nobody gets two different ones.

    *Guarantees*, as long as at most ``max_colluders`` sites tell the server what they know: the
    server learns of the vectors nothing but one sum of at least ``least_in_sum`` of them, whatever
    it says and to whom. A site never gives away both its share of another's own mask and of that
    other's key. If the round breaks off before `reveal`, nothing is learnt at all.
    """

    terms: Terms
    roster: Roster
    name: str
    phase: Phase
    channel_seed: bytes = field(repr=False)
    key_seed: bytes = field(repr=False)
    mask_seed: bytes = field(repr=False)
    advertised: bytes = field(repr=False)
    held: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    survivors: tuple[str, ...] = ()

    def share(self, advertised: bytes) -> tuple[SiteRound, bytes]:
        """Sealed shares of this site's secrets, for all whose keys are in ``advertised``.

        Raises:
            Aborted: if keys are missing, not signed by the hospital that the roster names, or this
                site's own are not what it said.
        """
        self._expect(Phase.advertised)
        others = self._keys(advertised)
        self._check_keys(others)
        terms, count = self.terms, self.terms.num_sites
        masks = primitives.split(self.mask_seed, threshold=terms.threshold, count=count)
        ours = primitives.split(self.key_seed, threshold=terms.threshold, count=count)
        both = {n: masks[i] + ours[i] for i, n in enumerate(self.roster.names) if n in others}
        sealed: dict[str, bytes] = {}
        for name in others.keys() - {self.name}:
            key, about = self._channel(others[name], self.name, name)
            sealed[name] = primitives.seal(key, both[name], about)
        held = {self.name: both[self.name]}
        state = replace(self, phase=Phase.shared, advertised=advertised, held=held)
        return state, pack_sealed(terms, sealed)

    def mask(self, sealed: bytes, values: Vector) -> tuple[SiteRound, bytes]:
        """This site's vector under its masks.

        Args:
            sealed: shares of the other sites for this one.
            values: (num_weights,) of the ring; with the site's noise in it.

        Raises:
            Aborted: if too few sites shared, or a share was not sealed by its site for this one.
        """
        terms = self.terms
        if values.shape != (terms.num_weights,) or values.dtype.itemsize * 8 != terms.modulus_bits:
            raise ValueError(f"values of {values.shape} {values.dtype}: not as the terms say")
        state = self.received(sealed)
        others = state._keys(state.advertised)
        masked = values.copy()
        own = primitives.derive(state.mask_seed, "own mask", terms.context, state.name.encode())
        primitives.add_mask(masked, own)
        for name in sorted(set(state.held) - {state.name}):
            key = pair_key(terms, state.key_seed, state.name, others[name])
            primitives.add_mask(masked, key, negative=state.name > name)
        return state, pack_masked(terms, masked)

    def received(self, sealed: bytes) -> SiteRound:
        """The state with the other sites' shares; `mask` does this itself.

        A site may do it first, to see that the round goes on before it computes anything.

        Raises:
            Aborted: as `mask` does.
        """
        self._expect(Phase.shared)
        others, held = self._keys(self.advertised), dict(self.held)
        for name, one in read_sealed(self.terms, sealed).items():
            if name not in others or name == self.name:
                raise Aborted("shares came of a site that has no part in this")
            key, about = self._channel(others[name], name, self.name)
            held[name] = primitives.unseal(key, one, about)
        self._expect_enough(len(held), "gave shares")
        return replace(self, phase=Phase.masked, held=held)

    def agree(self, survivors: bytes, key: keys.SiteKey) -> tuple[SiteRound, bytes]:
        """This site's signature under the list of whose vectors are in the sum.

        Raises:
            Aborted: if they are too few for the noise, this site is not among them, or one of them
                gave no shares.
        """
        self._expect(Phase.masked)
        names = read_survivors(self.terms, survivors)
        if not set(names) <= set(self.held) or self.name not in names:
            raise Aborted("the list of sites in the sum cannot be right")
        self._expect_enough(len(names), "are in the sum")
        signature = key.sign(agreement(self.terms, self.held, names))
        state = replace(self, phase=Phase.agreed, survivors=names)
        return state, pack_agreements(self.terms, {self.name: signature})

    def reveal(self, agreements: bytes) -> tuple[SiteRound, bytes]:
        """Shares that take the masks off the sum.

        Raises:
            Aborted: if fewer sites than the threshold signed the list that this site signed.
        """
        self._expect(Phase.agreed)
        signed = agreement(self.terms, self.held, self.survivors)
        signatures = read_agreements(self.terms, agreements)
        valid = [
            name
            for name in self.survivors
            if name in signatures
            and keys.verify(self.roster.key_of(name), signed, signatures[name])
        ]
        if len(valid) < self.terms.threshold:
            raise Aborted(
                f"{len(valid)} sites signed the list of sites in the sum, "
                f"{self.terms.threshold} are needed"
            )
        dropped = set(self.held) - set(self.survivors)
        revealed = Reveal(
            mask_shares={name: self.held[name][:SEED_BYTES] for name in self.survivors},
            key_shares={name: self.held[name][SEED_BYTES:] for name in sorted(dropped)},
        )
        return self._forgotten(), pack_reveal(self.terms, revealed)

    def to_bytes(self) -> bytes:
        """The state, secrets in clear: for a file that only the site can read."""
        header: dict[str, object] = {
            "terms": self.terms.to_dict(),
            "roster": list(self.roster.members),
            "name": self.name,
            "phase": self.phase.value,
            "seeds": [s.hex() for s in (self.channel_seed, self.key_seed, self.mask_seed)],
            "held": {name: shares.hex() for name, shares in self.held.items()},
            "survivors": list(self.survivors),
        }
        return pack("state", header, self.advertised)

    @classmethod
    def from_bytes(cls, data: bytes) -> SiteRound:
        """The inverse of `to_bytes`.

        Raises:
            Aborted: if the state is damaged.
        """
        header, advertised = unpack(data, "state")
        kept = cast("dict[str, Any]", header)
        try:
            channel_seed, key_seed, mask_seed = map(bytes.fromhex, kept["seeds"])
            return cls(
                terms=Terms.from_dict(kept["terms"]),
                roster=Roster.of(dict(kept["roster"])),
                name=str(kept["name"]),
                phase=Phase(kept["phase"]),
                channel_seed=channel_seed,
                key_seed=key_seed,
                mask_seed=mask_seed,
                advertised=advertised,
                held={name: bytes.fromhex(shares) for name, shares in kept["held"].items()},
                survivors=tuple(kept["survivors"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Aborted("what a site kept of its round is damaged") from error

    def _keys(self, advertised: bytes) -> dict[str, Advertisement]:
        return {one.site: one for one in read_advertised(self.terms, advertised)}

    def _check_keys(self, others: Mapping[str, Advertisement]) -> None:
        for name, one in others.items():
            if name not in self.roster.names or not one.valid(self.terms, self.roster.key_of(name)):
                raise Aborted("keys came that no hospital of the roster signed for this round")
        (own,) = read_advertised(self.terms, self.advertised)
        if others.get(self.name) != own:
            raise Aborted("this site's own keys are missing or changed")
        for kind in ("channel_key", "mask_key"):
            if len({getattr(one, kind) for one in others.values()}) != len(others):
                raise Aborted("two sites came with one key")
        self._expect_enough(len(others), "gave keys")

    def _channel(self, other: Advertisement, sender: str, receiver: str) -> tuple[bytes, bytes]:
        """Key and associated data of what ``sender`` seals for ``receiver``."""
        context = self.terms.context
        secret = primitives.agree(self.channel_seed, _CHANNEL, context, other.channel_key)
        ends = (sender.encode(), receiver.encode())
        key = primitives.derive(secret, "shares", context, *ends)
        return key, b"\x1f".join((context, *ends))

    def _expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise Aborted(f"out of order: this site has {self.phase.value} already, or not yet")

    def _expect_enough(self, count: int, what: str) -> None:
        if count < self.terms.least_in_sum:
            raise Aborted(f"{count} sites {what}, {self.terms.least_in_sum} are needed")

    def _forgotten(self) -> SiteRound:
        nothing = bytes(SEED_BYTES)
        return replace(
            self,
            phase=Phase.revealed,
            channel_seed=nothing,
            key_seed=nothing,
            mask_seed=nothing,
            held={},
        )


def begin(terms: Terms, roster: Roster, *, name: str, key: keys.SiteKey) -> tuple[SiteRound, bytes]:
    """A site's first state, and its signed keys.

    Args:
        terms: as the server proposes and the site finds right.
        roster: as pinned at the site, not as the server says.
        name: of the site.
        key: its identity key.

    Raises:
        Aborted: if the terms are not about this roster.
        UsageError: if the roster does not know this site by this key.
    """
    if terms.roster != roster.digest or terms.num_sites != len(roster.names):
        raise Aborted("the server's roster is not the one pinned at this site")
    if name not in roster.names or roster.key_of(name) != key.public_key:
        raise UsageError("the pinned roster does not name this hospital with its own key")
    seeds = [primitives.new_seed() for _ in range(3)]
    unsigned = Advertisement(
        site=name,
        channel_key=primitives.public_of(seeds[0], _CHANNEL, terms.context),
        mask_key=public_mask_key(terms, seeds[1]),
        commitment=primitives.commitment(seeds[2], terms.context),
    )
    signed = replace(unsigned, signature=key.sign(unsigned.message(terms)))
    advertised = pack_advertised(terms, [signed])
    state = SiteRound(
        terms=terms,
        roster=roster,
        name=name,
        phase=Phase.advertised,
        channel_seed=seeds[0],
        key_seed=seeds[1],
        mask_seed=seeds[2],
        advertised=advertised,
    )
    return state, advertised


def public_mask_key(terms: Terms, seed: bytes) -> bytes:
    """The mask key that belongs to ``seed``."""
    return primitives.public_of(seed, _MASK, terms.context)


def pair_key(terms: Terms, seed: bytes, name: str, other: Advertisement) -> bytes:
    """Key of the mask that ``name``, whose seed this is, shares with ``other``."""
    secret = primitives.agree(seed, _MASK, terms.context, other.mask_key)
    ends = sorted((name.encode(), other.site.encode()))
    return primitives.derive(secret, "pair mask", terms.context, *ends)
