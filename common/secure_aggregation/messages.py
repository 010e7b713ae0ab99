"""What sites and server say to each other, phase by phase; all of it public but what is sealed.

Each message carries the context of its round (`Terms.context`); one of another round, run, roster
or task is refused when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from common.privacy import keys
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.frame import pack, unpack
from common.secure_aggregation.primitives import KEY_BYTES, SEED_BYTES, Vector
from common.secure_aggregation.roster import MAX_SITES
from common.secure_aggregation.terms import Terms

Bytes = dict[str, bytes]
Item = TypeVar("Item")
_DOMAIN = b"fedward secure aggregation v1\n"
# Nonce, two shares, tag.
SEALED_BYTES = 12 + 2 * SEED_BYTES + 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Advertisement:
    """A site's keys for one round, signed with its identity key.

    Attributes:
        site: whose.
        channel_key: X25519; shares for this site are sealed with it.
        mask_key: X25519; pairwise masks come from it.
        commitment: to the seed of the site's own mask.
        signature: Ed25519 over all of these and the context, hexadecimal.
    """

    site: str
    channel_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: str = ""

    def message(self, terms: Terms) -> bytes:
        """The bytes that the signature covers."""
        parts = (self.channel_key, self.mask_key, self.commitment, self.site.encode())
        return _DOMAIN + b"keys\n" + terms.context + b"".join(parts)

    def valid(self, terms: Terms, identity: str) -> bool:
        """Whether the hospital known by the key ``identity`` signed it for this round."""
        return keys.verify(identity, self.message(terms), self.signature)


def pack_advertised(terms: Terms, advertisements: Iterable[Advertisement]) -> bytes:
    """Keys of several sites; a site sends its own alone."""
    listed = [
        {
            "site": one.site,
            "channel_key": one.channel_key.hex(),
            "mask_key": one.mask_key.hex(),
            "commitment": one.commitment.hex(),
            "signature": one.signature,
        }
        for one in advertisements
    ]
    return _pack(terms, "keys", {"keys": listed})


def read_advertised(terms: Terms, data: bytes) -> tuple[Advertisement, ...]:
    """The inverse of `pack_advertised`; signatures are not checked here.

    Raises:
        Aborted: if it is no such message of this round, or a site is in it twice.
    """

    def read(header: dict[str, object]) -> tuple[Advertisement, ...]:
        return tuple(
            Advertisement(
                site=_text(one["site"]),
                channel_key=_bytes(one["channel_key"], KEY_BYTES),
                mask_key=_bytes(one["mask_key"], KEY_BYTES),
                commitment=_bytes(one["commitment"], KEY_BYTES),
                signature=_text(one["signature"]),
            )
            for one in cast("list[dict[str, object]]", header["keys"])[: MAX_SITES + 1]
        )

    found = _read(terms, "keys", data, read)
    if len({one.site for one in found}) != len(found):
        raise Aborted("a site's keys came twice")
    return found


def pack_sealed(terms: Terms, sealed: Mapping[str, bytes]) -> bytes:
    """Sealed shares: of a site by receiver, or for a site by sender."""
    return _pack(terms, "shares", {"shares": _hex(sealed)})


def read_sealed(terms: Terms, data: bytes) -> Bytes:
    """The inverse of `pack_sealed`.

    Raises:
        Aborted: if it is no such message of this round.
    """
    return _read(terms, "shares", data, lambda h: _named(h["shares"], SEALED_BYTES))


def pack_masked(terms: Terms, values: Vector) -> bytes:
    """A masked vector."""
    body = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return pack("masked", {"context": terms.context.hex()}, body)


def read_masked(terms: Terms, data: bytes) -> Vector:
    """The inverse of `pack_masked`.

    Raises:
        Aborted: if it is no such message of this round, or of another length.
    """
    width = terms.modulus_bits // 8
    size = terms.num_weights * width
    header, body = unpack(data, "masked", max_body=size)
    if header.get("context") != terms.context.hex() or len(body) != size:
        raise Aborted("a masked vector is of another round or length")
    return np.frombuffer(body, dtype=f"<u{width}")


def pack_survivors(terms: Terms, names: Iterable[str]) -> bytes:
    """Whose masked vectors are in the sum."""
    return _pack(terms, "survivors", {"sites": sorted(names)})


def read_survivors(terms: Terms, data: bytes) -> tuple[str, ...]:
    """The inverse of `pack_survivors`: sorted, each once.

    Raises:
        Aborted: if it is no such message of this round.
    """

    def read(header: dict[str, object]) -> tuple[str, ...]:
        listed = cast("list[object]", header["sites"])[: MAX_SITES + 1]
        return tuple(_text(name) for name in listed)

    names = _read(terms, "survivors", data, read)
    if list(names) != sorted(set(names)):
        raise Aborted("a list of sites is out of order or names one twice")
    return names


def agreement(terms: Terms, sharers: Iterable[str], survivors: Iterable[str]) -> bytes:
    """What sites sign: whose shares went round, and whose vectors are in the sum."""
    lists = json.dumps([sorted(sharers), sorted(survivors)]).encode()
    return _DOMAIN + b"survivors\n" + terms.context + hashlib.sha256(lists).digest()


def pack_agreements(terms: Terms, signatures: Mapping[str, str]) -> bytes:
    """Signatures of one list of survivors, by site; a site sends its own alone."""
    return _pack(terms, "agreements", {"signatures": dict(signatures)})


def read_agreements(terms: Terms, data: bytes) -> dict[str, str]:
    """The inverse of `pack_agreements`; signatures are not checked here.

    Raises:
        Aborted: if it is no such message of this round.
    """

    def read(header: dict[str, object]) -> dict[str, str]:
        listed = _mapping(header["signatures"])
        return {name: _text(signature) for name, signature in listed.items()}

    return _read(terms, "agreements", data, read)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reveal:
    """One site's shares: of the own masks of those in the sum, of the keys of those who dropped."""

    mask_shares: Bytes
    key_shares: Bytes


def pack_reveal(terms: Terms, reveal: Reveal) -> bytes:
    """A site's answer in the last phase."""
    fields: dict[str, object] = {
        "masks": _hex(reveal.mask_shares),
        "keys": _hex(reveal.key_shares),
    }
    return _pack(terms, "reveal", fields)


def read_reveal(terms: Terms, data: bytes) -> Reveal:
    """The inverse of `pack_reveal`.

    Raises:
        Aborted: if it is no such message of this round.
    """

    def read(header: dict[str, object]) -> Reveal:
        return Reveal(
            mask_shares=_named(header["masks"], SEED_BYTES),
            key_shares=_named(header["keys"], SEED_BYTES),
        )

    return _read(terms, "reveal", data, read)


def _pack(terms: Terms, kind: str, fields: dict[str, object]) -> bytes:
    return pack(kind, {"context": terms.context.hex(), **fields})


def _read(terms: Terms, kind: str, data: bytes, read: Callable[[dict[str, object]], Item]) -> Item:
    header, body = unpack(data, kind)
    if header.get("context") != terms.context.hex() or body:
        raise Aborted(f"{kind} of another round came")
    try:
        return read(header)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Aborted(f"{kind} do not fit the protocol") from error


def _hex(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def _mapping(value: object) -> dict[str, object]:
    listed = cast("dict[str, object]", value)
    if len(listed.keys()) > MAX_SITES:
        raise ValueError("more entries than sites")
    return listed


def _named(value: object, size: int) -> Bytes:
    return {name: _bytes(text, size) for name, text in _mapping(value).items()}


def _bytes(value: object, size: int) -> bytes:
    found = bytes.fromhex(_text(value))
    if len(found) != size:
        raise ValueError(f"{len(found)} bytes, {size} expected")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value
