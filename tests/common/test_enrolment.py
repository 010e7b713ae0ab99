"""Enrolment files: what a consortium takes, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common import enrolment
from common.enrolment import Enrolment
from common.errors import UsageError


def public(curve: ec.EllipticCurve | None = None) -> str:
    key = (
        ed25519.Ed25519PrivateKey.generate().public_key()
        if curve is None
        else ec.generate_private_key(curve).public_key()
    )
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


NODE_KEY = public(ec.SECP384R1())


def make(**changes: str) -> Enrolment:
    given = {
        "consortium": "north",
        "hospital": "st-mary",
        "node_key": NODE_KEY,
        "site_key": "ab" * 32,
    }
    return enrolment.make(**given | changes)


def test_what_is_written_is_read_again_with_the_same_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "enrolment.json"
    path.write_text(make().dumps())
    assert enrolment.read(path) == make()
    # the order and the blanks of the file do not matter, its words do
    path.write_text(json.dumps(dict(reversed(json.loads(make().dumps()).items()))))
    assert enrolment.read(path).fingerprint == make().fingerprint


def test_another_fingerprint_for_every_other_field() -> None:
    others = [
        make(),
        make(consortium="south"),
        make(hospital="st-luke"),
        make(node_key=public(ec.SECP384R1())),
        make(site_key="cd" * 32),
    ]
    assert len({one.fingerprint for one in others}) == len(others)
    assert all(len(one.fingerprint) == 39 for one in others)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"node_key": public()}, "of the curve P-384"),
        ({"node_key": public(ec.SECP256R1())}, "of the curve P-384"),
        ({"node_key": NODE_KEY + " someone@host"}, "of the curve P-384"),
        ({"node_key": NODE_KEY + "\n" + NODE_KEY}, "of the curve P-384"),
        ({"node_key": "ecdsa-sha2-nistp384 AAAA"}, "not a public key"),
        ({"site_key": "AB" * 32}, "64 hexadecimal digits"),
        ({"site_key": "ab" * 31}, "64 hexadecimal digits"),
        ({"hospital": "--all"}, "letters, digits"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, changes: dict[str, str], complaint: str) -> None:
    path = tmp_path / "enrolment.json"
    path.write_text(json.dumps(json.loads(make().dumps()) | changes))
    with pytest.raises(UsageError, match=complaint) as caught:
        enrolment.read(path)
    assert "\n" not in str(caught.value)
