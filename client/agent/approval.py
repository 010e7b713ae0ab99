"""Which bundles a hospital has approved, by hash; signed, so that only its own key can add one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any, cast

from client.agent import bundle as bundles
from client.agent.audit import AuditLog, Kind
from client.agent.bundle import Bundle
from common.errors import LedgerError, UsageError
from common.files import write_atomically
from common.privacy import keys
from common.privacy.keys import SiteKey

SCHEMA = "fedward.approvals/1"
_DOMAIN = b"fedward approvals v1\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """One approved bundle, and when (UTC)."""

    sha256: str
    name: str
    time: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Approvals:
    """The approvals of a site, in a folder with a copy of each bundle that was looked at.

    Attributes:
        folder: of the list and the copies.
        key: signs the list.
        published: a copy of the list for the gate, which may not look into the folder.
    """

    folder: Path
    key: SiteKey
    published: Path | None = None

    @property
    def _file(self) -> Path:
        return self.folder / "approvals.json"

    def current(self) -> tuple[Approval, ...]:
        """What is approved, in the order of approval; read anew each time.

        Raises:
            LedgerError: The file is damaged or not signed by the site.
        """
        return listed(self._file, self.key.public_key)

    def allow(self, sha256: str) -> bool:
        """Whether the bundle with this hash is approved now.

        Raises:
            LedgerError: The approvals cannot be read or trusted.
        """
        return any(one.sha256 == sha256 for one in self.current())

    def look_at(self, content: bytes) -> Bundle:
        """Keeps a copy of a bundle, so that it can be approved and later ones compared with it.

        Raises:
            UsageError: It is no bundle.
        """
        found = bundles.parse(content)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._copy(found.sha256), content, mode=0o600)
        return found

    def last(self) -> Bundle | None:
        """The bundle that was approved last, of those that still are."""
        approved = self.current()
        return bundles.read(self._copy(approved[-1].sha256)) if approved else None

    def approve(self, sha256: str, audit: AuditLog) -> Approval:
        """Approves a bundle that was looked at before.

        Raises:
            UsageError: There is no copy of it, so nobody here has looked at it.
        """
        _check_hash(sha256)
        if not self._copy(sha256).is_file():
            raise UsageError(f"{sha256}: nobody has looked at it; run inspect first")
        found = bundles.read(self._copy(sha256))
        if found.sha256 != sha256:
            raise UsageError(f"{sha256}: the copy that was looked at has changed; inspect it again")
        approval = Approval(
            sha256=sha256, name=bundles.shown(found.name), time=datetime.now(UTC).isoformat()
        )
        with self._exclusive():
            others = [one for one in self.current() if one.sha256 != sha256]
            # logged first: an approval that nobody can see in the log must not count
            audit.append(
                Kind.approved, {"bundle": sha256, "name": approval.name, "uid": os.getuid()}
            )
            self._write([*others, approval])
        return approval

    def revoke(self, sha256: str, audit: AuditLog) -> None:
        """Takes an approval back; from the next request on.

        Raises:
            UsageError: It is not approved.
        """
        _check_hash(sha256)
        with self._exclusive():
            before = self.current()
            kept = [one for one in before if one.sha256 != sha256]
            if len(kept) == len(before):
                raise UsageError(f"{sha256}: is not approved")
            self._write(kept)
            audit.append(Kind.revoked, {"bundle": sha256, "uid": os.getuid()})

    def _copy(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.fab"

    def _write(self, approved: list[Approval]) -> None:
        rows = [{"sha256": a.sha256, "name": a.name, "time": a.time} for a in approved]
        fields = {
            "schema": SCHEMA,
            "approved": rows,
            "signature": self.key.sign(_message(rows)),
        }
        try:
            write_atomically(self._file, json.dumps(fields, indent=2) + "\n", mode=0o600)
        except OSError as error:
            raise LedgerError(f"the approvals cannot be written ({error.strerror})") from error
        self.publish()

    def publish(self) -> None:
        """Copies the list to where the gate reads it.

        Raises:
            LedgerError: The copy cannot be written.
        """
        if self.published is None or not self._file.exists():
            return
        try:
            write_atomically(self.published, self._file.read_bytes(), mode=0o644)
        except OSError as error:
            raise LedgerError(f"the approvals cannot be published ({error.strerror})") from error

    @contextmanager
    def _exclusive(self) -> Generator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.folder / "approvals.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            flock(lock, LOCK_EX)
            yield
        finally:
            os.close(lock)


def listed(path: Path, public_key: str) -> tuple[Approval, ...]:
    """What the list at ``path`` approves, in the order of approval; nothing if there is none.

    Raises:
        LedgerError: The list is damaged or not signed with the private half of ``public_key``.
    """
    try:
        fields: Any = json.loads(path.read_bytes())
        rows, signature = fields["approved"], fields["signature"]
        if not keys.verify(public_key, _message(rows), signature):
            raise LedgerError("the approvals are not signed by this site's key")
        return tuple(Approval(**one) for one in rows)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise LedgerError(f"the approvals cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError("the approvals are damaged") from error


def _message(rows: object) -> bytes:
    return _DOMAIN + json.dumps(cast("Any", rows), sort_keys=True).encode()


def _check_hash(sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UsageError(f"{sha256}: must be the bundle's SHA-256, 64 hexadecimal digits")
