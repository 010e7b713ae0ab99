"""The hospitals of a consortium: invited, admitted, revoked; one file each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from common import enrolment, exchange, join_file
from common.enrolment import Enrolment
from common.errors import UsageError
from common.files import write_atomically, write_new
from common.join_file import JoinFile
from common.secure_aggregation import roster_file
from common.secure_aggregation.roster_file import RosterFile
from server.consortium.folder import Folder
from server.consortium.superlink import Superlink

SCHEMA = "fedward.member/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One hospital as the consortium knows it.

    Attributes:
        hospital: its name.
        invited: when (UTC).
        admitted: when its key was registered; absent before, and after it was revoked.
        node_id: by which the SuperLink knows the registered key.
        node_key: that key.
        site_key: that signs the hospital's spend statements.
        revoked: when its key was taken back, if it was.
    """

    hospital: str
    invited: str
    admitted: str | None = None
    node_id: str | None = None
    node_key: str | None = None
    site_key: str | None = None
    revoked: str | None = None

    @property
    def state(self) -> str:
        """In a word."""
        if self.admitted is not None:
            return "admitted"
        return "invited" if self.revoked is None else "revoked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """All hospitals of the consortium in ``folder``."""

    folder: Folder

    def all(self) -> tuple[Member, ...]:
        """By name.

        Raises:
            UsageError: A file of one is damaged.
        """
        return tuple(self._read(path) for path in sorted(self.folder.hospitals.glob("*.json")))

    def roster(self, hospitals: Sequence[str] = ()) -> RosterFile:
        """The keys of these hospitals, or of all that are admitted, for each of them to pin.

        Raises:
            UsageError: One of them is not admitted, or they are too few.
        """
        names = hospitals or [one.hospital for one in self.all() if one.admitted is not None]
        keys: dict[str, str] = {}
        for member in map(self.get, names):
            if member.admitted is None or member.site_key is None:
                raise UsageError(f"hospital={member.hospital}: is {member.state}, not admitted")
            keys[member.hospital] = member.site_key
        return roster_file.make(self.folder.settings().name, keys)

    def get(self, hospital: str) -> Member:
        """The hospital of this name.

        Raises:
            UsageError: There is none.
        """
        path = self._file(exchange.check_name("hospital", hospital))
        if not path.is_file():
            raise UsageError(f"hospital={hospital}: was not invited (consortium invite)")
        return self._read(path)

    def expect(self, hospitals: Iterable[str]) -> None:
        """Hold the names of a run to who was invited.

        Raises:
            UsageError: One of them was not, or was revoked.
        """
        for member in map(self.get, hospitals):
            if member.state == "revoked":
                raise UsageError(f"hospital={member.hospital}: is revoked (consortium admit)")

    def invitation(self, hospital: str) -> JoinFile:
        """What a hospital joins with; nothing is written down of it."""
        settings = self.folder.settings()
        return join_file.make(
            consortium=settings.name,
            hospital=hospital,
            address=settings.address,
            ca_certificate=self.folder.ca_certificate.read_text(),
        )

    def invite(self, hospital: str, *, now: datetime) -> JoinFile:
        """An invitation; for a hospital that was invited before, the same again."""
        join = self.invitation(hospital)
        if not self._file(hospital).exists():
            member = Member(hospital=hospital, invited=_stamp(now))
            write_new(self._file(hospital), _dump(member), mode=0o600)
        return join

    def check(self, path: Path, *, replaced: bool) -> Enrolment:
        """The enrolment at ``path``, if it could be admitted.

        Raises:
            UsageError: It could not, and why.
        """
        given = enrolment.read(path)
        settings = self.folder.settings()
        if given.consortium != settings.name:
            raise UsageError(f"{path}: of the consortium {given.consortium}, not {settings.name}")
        member = self.get(given.hospital)
        for other in self.all():
            taken = other.node_key == given.node_key or other.site_key == given.site_key
            if taken and other.hospital != given.hospital:
                raise UsageError(f"{path}: {other.hospital} has come with one of these keys before")
        if member.admitted is not None and not replaced:
            raise UsageError(
                f"hospital={given.hospital}: is admitted already (--replace, if its key is new)"
            )
        if member.node_key == given.node_key and member.revoked is not None:
            raise UsageError(f"{path}: this key was revoked; the hospital needs a new one")
        if member.admitted is not None and member.site_key != given.site_key:
            raise UsageError(
                f"{path}: the key of the agent is another than before, so its ledger is too; "
                "revoke the hospital and ask why"
            )
        if member.admitted is not None and member.node_key == given.node_key:
            raise UsageError(f"{path}: this key is the one that is admitted")
        return given

    def admit(self, given: Enrolment, link: Superlink, *, now: datetime) -> Member:
        """Registers a key that `check` gave, in place of the hospital's one before.

        Raises:
            UsageError: The SuperLink does not take it.
        """
        member = self.get(given.hospital)
        if member.admitted is not None and member.node_id is not None:
            link.unregister(member.node_id)
            member = replace(member, admitted=None, node_id=None)
            self._write(member)  # so that a failure below is not taken for an admission
        node_id = link.register(given.node_key, given.hospital)
        member = replace(
            member,
            admitted=_stamp(now),
            node_id=node_id,
            node_key=given.node_key,
            site_key=given.site_key,
            revoked=None,
        )
        self._write(member)
        return member

    def revoke(self, hospital: str, link: Superlink, *, now: datetime) -> Member:
        """Takes the hospital's key back; the SuperLink answers it no more.

        Raises:
            UsageError: It is not admitted, or the SuperLink cannot be asked.
        """
        member = self.get(hospital)
        if member.admitted is None or member.node_id is None:
            raise UsageError(f"hospital={hospital}: is {member.state}, not admitted")
        link.unregister(member.node_id)
        member = replace(member, admitted=None, node_id=None, revoked=_stamp(now))
        self._write(member)
        return member

    def _file(self, hospital: str) -> Path:
        return self.folder.hospitals / f"{hospital}.json"

    def _write(self, member: Member) -> None:
        write_atomically(self._file(member.hospital), _dump(member), mode=0o600)

    def _read(self, path: Path) -> Member:
        try:
            fields: Any = json.loads(path.read_text())
            if fields.pop("schema") != SCHEMA:
                raise UsageError(f"{path}: not of {SCHEMA}")
            return Member(**fields)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}: damaged") from error


def _dump(member: Member) -> str:
    return json.dumps({"schema": SCHEMA, **asdict(member)}, indent=2) + "\n"


def _stamp(now: datetime) -> str:
    return now.isoformat(timespec="seconds")
