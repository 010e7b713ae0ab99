"""The cryptography that the protocol is made of; nothing here is home-made.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20 and its AEAD (RFC 8439) from `cryptography`,
Shamir's secret sharing over GF(2^128) from `pycryptodome`. Secrets that are shared are seeds of
16 bytes, as long as the field is wide; keys are derived from them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common.secure_aggregation.aborted import Aborted

Vector: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]

SEED_BYTES = 16
KEY_BYTES = 32
_NONCE_BYTES = 12
_DOMAIN = b"fedward secure aggregation v1\n"
_AT_ONCE = 1 << 22
# The library's own hints call an argument needed that has a default.
_split = cast("Callable[[int, int, bytes], list[tuple[int, bytes]]]", Shamir.split)
_combine = cast("Callable[[list[tuple[int, bytes]]], bytes]", Shamir.combine)


def new_seed() -> bytes:
    """A secret from the operating system's entropy."""
    return os.urandom(SEED_BYTES)


def derive(secret: bytes, purpose: str, *context: bytes) -> bytes:
    """A key of 32 bytes for one purpose in one context."""
    parts = (_DOMAIN, purpose.encode(), *context)
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def public_of(seed: bytes, purpose: str, context: bytes) -> bytes:
    """The X25519 public key that belongs to ``seed``."""
    return _private(seed, purpose, context).public_key().public_bytes_raw()


def agree(seed: bytes, purpose: str, context: bytes, public: bytes) -> bytes:
    """The X25519 secret shared with the owner of ``public``.

    Raises:
        Aborted: if the public key is none, or of small order.
    """
    try:
        return _private(seed, purpose, context).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise Aborted("a public key cannot be used") from error


def _private(seed: bytes, purpose: str, context: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derive(seed, purpose, context))


def commitment(seed: bytes, context: bytes) -> bytes:
    """Holds its owner to ``seed`` without showing it: 32 bytes."""
    return hashlib.sha256(_DOMAIN + b"commitment\n" + context + seed).digest()


def seal(key: bytes, plain: bytes, about: bytes) -> bytes:
    """``plain`` under authenticated encryption, bound to ``about``."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """The inverse of `seal`.

    Raises:
        Aborted: if it was changed, or sealed under another key or about something else.
    """
    try:
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        return ChaCha20Poly1305(key).decrypt(nonce, text, about)
    except (InvalidTag, ValueError) as error:
        raise Aborted("an encrypted share was changed or is meant for something else") from error


def split(secret: bytes, *, threshold: int, count: int) -> tuple[bytes, ...]:
    """Shares of ``secret`` at the points 1 to ``count``; fewer than ``threshold`` say nothing."""
    return tuple(share for _, share in _split(threshold, count, secret))


def combine(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret of which these are shares, by point.

    Raises:
        Aborted: if there are fewer than ``threshold``.
    """
    if len(shares) < threshold:
        raise Aborted(f"{len(shares)} shares of a secret, {threshold} are needed")
    return _combine([(point, shares[point]) for point in sorted(shares)[:threshold]])


def zeros(length: int, bits: int) -> Vector:
    """(length,) of the ring of integers modulo 2 to ``bits``."""
    return np.zeros(length, np.uint32) if bits == 32 else np.zeros(length, np.uint64)


def add_mask(values: Vector, key: bytes, *, negative: bool = False) -> None:
    """Add the stream of ``key`` to ``values`` (or subtract it), in place, modulo the ring."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    width = values.dtype.itemsize
    for start in range(0, len(values), _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        mask = np.frombuffer(
            stream.update(bytes(width * len(part))), dtype=part.dtype.newbyteorder("<")
        )
        if negative:
            np.subtract(part, mask, out=part)
        else:
            np.add(part, mask, out=part)
