"""Join files: what a hospital takes, and what it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import join_file
from common.errors import UsageError
from common.join_file import JoinFile

NOW = datetime.now(UTC)


def certificate(*, of_authority: bool = True) -> str:
    authority = trustme.CA()
    if of_authority:
        return authority.cert_pem.bytes().decode()
    return authority.issue_cert("localhost").cert_chain_pems[0].bytes().decode()


def make(**changes: str) -> JoinFile:
    given = {
        "consortium": "north",
        "hospital": "st-mary",
        "address": "fed.example.org:8443",
        "ca_certificate": certificate(),
    }
    return join_file.make(**given | changes)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "join.json"
    path.write_text(make().dumps())
    assert join_file.read(path).dumps() == path.read_text()
    assert json.loads(path.read_text())["schema"] == "fedward.join/1"
    assert "PRIVATE" not in path.read_text()


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: f | {"schema": "fedward.join/2"}, "must be fedward.join/1"),
        (lambda f: f | {"command": "rm"}, "command: missing or unknown"),
        (lambda f: {k: v for k, v in f.items() if k != "address"}, "address: missing"),
        (lambda f: f | {"address": 8443}, "address: must be text"),
        (lambda f: f | {"address": "fed.example.org:0"}, "must be HOST:PORT"),
        (lambda f: f | {"address": "--insecure:1"}, "must be HOST:PORT"),
        (lambda f: f | {"address": "a b:1"}, "must be HOST:PORT"),
        (lambda f: f | {"hospital": "../../etc"}, "letters, digits"),
        (lambda f: f | {"hospital": "x\n[Service]"}, "letters, digits"),
        (lambda f: f | {"consortium": ""}, "letters, digits"),
        (lambda f: f | {"ca_sha256": "0" * 64}, "not of the certificate"),
        (lambda f: f | {"ca_certificate": "x"}, "one certificate"),
        (lambda f: f | {"ca_certificate": certificate(of_authority=False)}, "of an authority"),
        (lambda f: f | {"ca_certificate": f["ca_certificate"] * 2}, "one certificate"),
        (lambda f: f | {"ca_certificate": certificate()}, "not of the certificate"),
        (lambda f: [f], "not a file of"),
        (lambda f: f | {"consortium": "n" * 200_000}, "larger than"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, change: Change, complaint: str) -> None:
    path = tmp_path / "join.json"
    path.write_text(json.dumps(change(json.loads(make().dumps()))))
    with pytest.raises(UsageError, match=complaint) as caught:
        join_file.read(path)
    assert "\n" not in str(caught.value)


def test_a_field_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "join.json"
    path.write_text(make().dumps().replace('"hospital"', '"hospital": "other", "hospital"', 1))
    with pytest.raises(UsageError, match="no JSON"):
        join_file.read(path)


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_it_it_is_a_join_file_or_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "join.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        join_file.read(path)
    assert "\n" not in str(caught.value)
