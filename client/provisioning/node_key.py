"""The key by which a hospital's SuperNode is known: made here, and its private half stays here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from common.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeKey:
    """A key pair of the curve P-384, as OpenSSH writes it and Flower reads it.

    Attributes:
        private: never leaves the hospital.
        public: for the consortium.
    """

    private: bytes = field(repr=False)
    public: str


def generate() -> NodeKey:
    """A new key pair."""
    return _pair(ec.generate_private_key(ec.SECP384R1()))


def load(path: Path) -> NodeKey:
    """The key pair whose private half is the file at ``path``.

    Raises:
        UsageError: It cannot be read, or is no such key.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: not a private key of OpenSSH without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise UsageError(f"{path}: not of the curve P-384")
    return _pair(key)


def _pair(key: ec.EllipticCurvePrivateKey) -> NodeKey:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return NodeKey(private=private, public=public.decode())
