"""What both doctors look at, on this machine and against a real TLS server."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from common import machine, unix_user
from common.checkup import Level

NOW = datetime.now(UTC)
AUTHORITY = trustme.CA()
PEM = AUTHORITY.cert_pem.bytes()


class _Answers(http.server.BaseHTTPRequestHandler):
    code, date = 403, ""

    def do_GET(self) -> None:
        self.send_response_only(self.code)
        self.send_header("Date", self.date)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def served(
    *,
    code: int = 403,
    date: datetime = NOW,
    ends: datetime | None = None,
    by: trustme.CA = AUTHORITY,
) -> Iterator[str]:
    """The address of a server on loopback."""
    handler = type(
        "Handler", (_Answers,), {"code": code, "date": f"{date:%a, %d %b %Y %H:%M:%S GMT}"}
    )
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    by.issue_cert("127.0.0.1", not_after=ends).configure_cert(context)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.handle_error = lambda *_: None  # a client that turns away is what is tested
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def levels(address: str, authority: bytes = PEM, way: str | None = None) -> dict[str, Level]:
    found = machine.reach(address, authority, now=NOW, way=way)
    return {one.check: one.level for one in found}


def test_a_sound_server_is_found_sound() -> None:
    with served() as address:
        assert levels(address) == {
            "server": Level.ok,
            "certificate of the server": Level.ok,
            "clock": Level.ok,
        }


@pytest.mark.parametrize(
    ("minutes", "level"), [(0, Level.ok), (2, Level.warn), (-2, Level.warn), (6, Level.fail)]
)
def test_a_clock_that_is_off_is_seen(minutes: int, level: Level) -> None:
    with served(date=NOW + timedelta(minutes=minutes)) as address:
        assert levels(address)["clock"] is level


def test_a_certificate_that_ends_soon_is_a_warning_and_one_that_ended_fails() -> None:
    with served(ends=NOW + timedelta(days=10)) as address:
        assert levels(address)["certificate of the server"] is Level.warn
    with served(ends=NOW - timedelta(days=1)) as address:
        [found] = machine.reach(address, PEM, now=NOW, way=None)
    assert (found.level, "its certificate has ended" in found.text) == (Level.fail, True)


def test_a_stranger_a_closed_port_an_open_superlink_and_a_dead_proxy_fail() -> None:
    with served(by=trustme.CA()) as address:
        [found] = machine.reach(address, PEM, now=NOW, way=None)
        assert "not whom the authority vouches for" in found.text
    [found] = machine.reach(address, PEM, now=NOW, way=None)
    assert found.level is Level.fail
    assert "does not answer" in found.text
    with served(code=200) as address:
        texts = [one.text for one in machine.reach(address, PEM, now=NOW, way=None)]
        assert "HTTP 200 outside /v1/fleet/, not 403" in texts
        [found] = machine.reach(address, PEM, now=NOW, way="http://127.0.0.1:1")
        assert found.level is Level.fail
    assert machine.reach(address, b"x", now=NOW, way=None)[0].level is Level.fail


def test_rights_and_owners(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    me = unix_user.myself()
    assert machine.owned(path, mode=0o600, owner=me).level is Level.ok
    path.chmod(0o644)
    found = machine.owned(path, mode=0o600, owner=me)
    assert (found.level, found.remedy) == (Level.fail, f"chmod 600 {path}")
    other = unix_user.find("61999")
    assert machine.owned(path, mode=0o644, owner=other).level is Level.fail
    assert machine.owned(tmp_path / "none", mode=0o600).level is Level.fail


def test_the_proxy_must_not_be_asked_for_this_machine() -> None:
    address = "fed.example.org:8443"
    assert machine.proxy({}, address).level is Level.ok
    way = {"HTTPS_PROXY": "http://proxy:3128"}
    assert machine.proxy(way, address).level is Level.warn
    assert machine.proxy({**way, "NO_PROXY": "localhost"}, address).level is Level.warn
    assert machine.proxy({**way, "NO_PROXY": "localhost, 127.0.0.1"}, address).level is Level.ok


def test_what_is_installed_is_what_fedward_was_made_for() -> None:
    found = machine.versions("flwr", "opacus")
    assert [one.level for one in found] == [Level.ok] * 3


@pytest.mark.parametrize(
    ("have", "fits"), [("1.41.0", True), ("1.41.9", True), ("1.42.0", False), ("1.40.3", False)]
)
def test_another_flower_is_refused(have: str, fits: bool) -> None:
    bounds = machine._wanted("flwr")
    assert bounds
    assert machine._fits(have, bounds) is fits
