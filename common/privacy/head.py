"""The signed head: a small file beside the ledger that shows if rows are missing at its end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from common.errors import LedgerError
from common.privacy import keys
from common.privacy.store import translated

# One disk sector, rewritten in place: the old or the new content, never a mixture.
_SIZE = 512
_DOMAIN = b"fedward ledger head v1\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """How many rows a ledger has had, the hash of the last, and the site's signature."""

    length: int
    hash: str
    signature: str

    def valid(self, public_key: str) -> bool:
        """Whether the site's key signed this."""
        return keys.verify(public_key, _message(self.length, self.hash), self.signature)


def _message(length: int, row_hash: str) -> bytes:
    return _DOMAIN + f"{length} {row_hash}".encode()


def path_of(ledger: Path) -> Path:
    """Where the head of ``ledger`` lies."""
    return ledger.with_suffix(".head")


@contextmanager
def _locked(path: Path, flags: int, operation: int) -> Generator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        os.close(descriptor)


def read(ledger: Path, public_key: str) -> Head | None:
    """The head beside ``ledger``, or none if there is no such file or nothing in it yet.

    Raises:
        LedgerError: The file is damaged or not signed by the site.
    """
    with translated("read its head"):
        try:
            with _locked(path_of(ledger), os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
                return _parsed(descriptor, public_key)
        except FileNotFoundError:
            return None


def _parsed(descriptor: int, public_key: str) -> Head | None:
    content = os.pread(descriptor, _SIZE + 1, 0)
    if not content:
        return None
    try:
        fields = cast("dict[str, object]", json.loads(content))
        length, row_hash, signature = fields["length"], fields["hash"], fields["signature"]
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError("the ledger's head is damaged") from error
    if (
        not isinstance(length, int)
        or not isinstance(row_hash, str)
        or not isinstance(signature, str)
    ):
        raise LedgerError("the ledger's head is damaged")
    head = Head(length=length, hash=row_hash, signature=signature)
    if not head.valid(public_key):
        raise LedgerError("the ledger's head is not signed by this site's key")
    return head


def advance(ledger: Path, *, length: int, row_hash: str, key: keys.SiteKey) -> None:
    """Sign and store a later head; an earlier one than what lies there changes nothing.

    Written after the row is durable: a process killed in between leaves a head that is behind,
    which opening the ledger mends, never one that is ahead.
    """
    flags = os.O_RDWR | os.O_CREAT
    with translated("store its head"), _locked(path_of(ledger), flags, fcntl.LOCK_EX) as descriptor:
        before = _parsed(descriptor, key.public_key)
        if before is not None and before.length >= length:
            return
        signature = key.sign(_message(length, row_hash))
        text = json.dumps({"length": length, "hash": row_hash, "signature": signature})
        content = text.encode().ljust(_SIZE - 1) + b"\n"
        if os.pwrite(descriptor, content, 0) != _SIZE:
            raise LedgerError("the ledger cannot store its head; nothing may be trained")
        os.fdatasync(descriptor)
