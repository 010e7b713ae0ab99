"""The site's own key: it signs the ledger and hides patients; it never leaves the site."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from common.errors import LedgerError

_SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class SiteKey:
    """An Ed25519 signing key, and the cohort key derived from the same secret seed."""

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != _SEED_BYTES:
            raise LedgerError(f"the site key has {len(self.seed)} bytes: must have {_SEED_BYTES}")

    @property
    def public_key(self) -> str:
        """The verifying key, hexadecimal; this part is public."""
        raw = (
            self._private()
            .public_key()
            .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )
        return raw.hex()

    @property
    def cohort_key(self) -> bytes:
        """The key under which patients are hashed."""
        return hmac.new(self.seed, b"fedward cohort key v1", hashlib.sha256).digest()

    def sign(self, message: bytes) -> str:
        """Signature of ``message``, hexadecimal."""
        return self._private().sign(message).hex()

    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @classmethod
    def generate(cls) -> SiteKey:
        """A new key from the operating system's entropy."""
        return cls(secrets.token_bytes(_SEED_BYTES))

    @classmethod
    def load(cls, path: Path) -> SiteKey:
        """The key in the file at ``path``.

        Raises:
            LedgerError: The file is missing, unreadable, of the wrong size, or open to others.
        """
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise LedgerError(
                    "the site key's file is open to other users: its mode must be 600"
                )
            return cls(path.read_bytes())
        except OSError as error:
            raise LedgerError(f"the site key cannot be read ({error.strerror})") from error

    @classmethod
    def load_or_create(cls, path: Path) -> SiteKey:
        """The key at ``path``; made there, readable by its owner only, if there is none."""
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    os.write(descriptor, cls.generate().seed)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                # A link fails where the name exists: of two processes, one key wins, whole.
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError as error:
                raise LedgerError(f"the site key cannot be made ({error.strerror})") from error
            finally:
                temporary.unlink(missing_ok=True)
        return cls.load(path)


def verify(public_key: str, message: bytes, signature: str) -> bool:
    """Whether ``signature`` over ``message`` was made with the private half of ``public_key``."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True
