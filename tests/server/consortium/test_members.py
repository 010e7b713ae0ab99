"""Invited, admitted, revoked: what is written down, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common import enrolment, join_file, unix_user
from common.errors import UsageError
from server.consortium import founding
from server.consortium.folder import Settings
from server.consortium.members import Members

NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass
class Link:
    """A SuperLink that remembers whom it lets in; the real one is in the end-to-end tests."""

    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    nodes: dict[str, str] = field(default_factory=dict)

    def register(self, public_key: str, name: str) -> str:
        if public_key in self.nodes.values():
            raise UsageError("flwr supernode register: public key already in use")
        del name
        number = str(next(self.numbers))
        self.nodes[number] = public_key
        return number

    def unregister(self, node_id: str) -> None:
        if node_id not in self.nodes:
            raise UsageError("flwr supernode unregister: no such node")
        del self.nodes[node_id]


@pytest.fixture
def members(tmp_path: Path) -> Members:
    settings = Settings(
        name="north",
        hosts=("localhost",),
        port=8443,
        link_port=8000,
        health_port=8001,
        user=unix_user.myself().name,
    )
    return Members(folder=founding.found(tmp_path / "server", settings, now=NOW))


def key() -> str:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def enrolled(path: Path, **changes: str) -> Path:
    given = {
        "consortium": "north",
        "hospital": "st-mary",
        "node_key": key(),
        "site_key": "ab" * 32,
    }
    path.write_text(enrolment.make(**given | changes).dumps())
    return path


def admit(members: Members, link: Any, path: Path, *, replaced: bool = False) -> Any:
    return members.admit(members.check(path, replaced=replaced), link, now=NOW)


def test_a_hospital_from_invitation_to_revocation_and_back(
    members: Members, tmp_path: Path
) -> None:
    link = Link()
    join = members.invite("st-mary", now=NOW)
    assert members.invite("st-mary", now=NOW) == join
    (tmp_path / "join.json").write_text(join.dumps())
    assert join_file.read(tmp_path / "join.json").address == "localhost:8443"
    assert members.get("st-mary").state == "invited"
    first = admit(members, link, enrolled(tmp_path / "one.json"))
    assert (first.state, link.nodes) == ("admitted", {"1": first.node_key})
    with pytest.raises(UsageError, match="is admitted already"):
        members.check(enrolled(tmp_path / "two.json"), replaced=False)
    second = admit(members, link, tmp_path / "two.json", replaced=True)
    assert link.nodes == {"2": second.node_key}
    assert members.revoke("st-mary", link, now=NOW).state == "revoked"
    assert link.nodes == {}
    with pytest.raises(UsageError, match="is revoked, not admitted"):
        members.revoke("st-mary", link, now=NOW)
    with pytest.raises(UsageError, match="this key was revoked"):
        members.check(tmp_path / "two.json", replaced=False)
    assert admit(members, link, enrolled(tmp_path / "three.json")).state == "admitted"
    assert [one.hospital for one in members.all()] == ["st-mary"]


def test_who_is_not_admitted(members: Members, tmp_path: Path) -> None:
    link = Link()
    members.invite("st-mary", now=NOW)
    members.invite("st-luke", now=NOW)
    admitted = admit(members, link, enrolled(tmp_path / "one.json"))
    assert admitted.node_key is not None

    def refused(complaint: str, *, replaced: bool = False, **changes: str) -> None:
        path = enrolled(tmp_path / "other.json", **changes)
        with pytest.raises(UsageError, match=complaint):
            members.check(path, replaced=replaced)

    refused("was not invited", hospital="st-john")
    refused("of the consortium south", consortium="south")
    refused("st-mary has come with one", hospital="st-luke", node_key=admitted.node_key)
    refused("st-mary has come with one", hospital="st-luke")
    refused("the key of the agent is another", replaced=True, site_key="cd" * 32)
    refused("is the one that is admitted", replaced=True, node_key=admitted.node_key)


def test_a_superlink_that_refuses_leaves_no_admission(members: Members, tmp_path: Path) -> None:
    class Refusing(Link):
        def register(self, public_key: str, name: str) -> str:
            raise UsageError("flwr supernode register: no answer")

    link = Link()
    members.invite("st-mary", now=NOW)
    admit(members, link, enrolled(tmp_path / "one.json"))
    path = enrolled(tmp_path / "two.json")
    refusing = Refusing(nodes=link.nodes)
    with pytest.raises(UsageError, match="no answer"):
        admit(members, refusing, path, replaced=True)
    assert members.get("st-mary").state == "invited"
    assert admit(members, link, path).state == "admitted"


def test_a_damaged_file_is_one_line(members: Members) -> None:
    members.invite("st-mary", now=NOW)
    (members.folder.hospitals / "st-mary.json").write_text("{}")
    with pytest.raises(UsageError, match="damaged"):
        members.all()
