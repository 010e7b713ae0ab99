"""Certificates: what a TLS client takes, and what it does not."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from server.consortium import authority
from server.consortium.authority import Pair

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def root() -> Pair:
    return authority.found("north", now=NOW)


def shake_hands(folder: Path, *, server: Pair, trusted: bytes, name: str) -> str:
    """What a client that trusts ``trusted`` says of a server; empty if it is content."""
    (folder / "server.crt").write_bytes(server.certificate)
    (folder / "server.key").write_bytes(server.key)
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(folder / "server.crt", folder / "server.key")
    here = ssl.create_default_context(cadata=trusted.decode())
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with there.wrap_socket(theirs, server_side=True) as secured:
                secured.recv(1)
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here.wrap_socket(ours, server_hostname=name) as secured:
            secured.sendall(b"x")
            return ""
    except ssl.SSLError as error:
        return str(error)
    finally:
        ours.close()
        thread.join()


def test_a_client_takes_every_name_and_address_and_no_other(tmp_path: Path, root: Pair) -> None:
    hosts = ["fed.example.org", "192.0.2.7", "2001:db8::1"]
    pair = authority.issue(root, hosts, now=NOW)
    for name in (*hosts, "localhost", "127.0.0.1"):
        said = shake_hands(tmp_path, server=pair, trusted=root.certificate, name=name)
        assert said == "", name
    for name in ("fed.example.com", "192.0.2.8"):
        said = shake_hands(tmp_path, server=pair, trusted=root.certificate, name=name)
        assert "mismatch" in said or "not valid for" in said


def test_an_expired_one_and_one_of_another_authority_are_refused(
    tmp_path: Path, root: Pair
) -> None:
    past = NOW - timedelta(days=400)
    old = authority.found("north", now=past)
    expired = authority.issue(old, ["localhost"], now=past)
    said = shake_hands(tmp_path, server=expired, trusted=old.certificate, name="localhost")
    assert "expired" in said
    stranger = authority.issue(authority.found("north", now=NOW), ["localhost"], now=NOW)
    said = shake_hands(tmp_path, server=stranger, trusted=root.certificate, name="localhost")
    assert "verify failed" in said


def test_what_each_certificate_may_do(root: Pair) -> None:
    above = root.parsed.extensions
    constraints = above.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = above.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.digital_signature) == (True, False)
    found = authority.issue(root, ["localhost", "192.0.2.7"], now=NOW).parsed.extensions
    assert found.get_extension_for_class(x509.BasicConstraints).value.ca is False
    purposes = found.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    addresses = names.get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("127.0.0.1")]


def test_no_certificate_outlives_its_authority(root: Pair) -> None:
    later = NOW + timedelta(days=authority.AUTHORITY_DAYS - 100)
    with pytest.raises(UsageError, match="the authority's own certificate ends"):
        authority.issue(root, ["localhost"], now=later)


@pytest.mark.parametrize("host", ["", "a b", "-a.example", "a..b", "999.1.1.1", "a;b", "*.example"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="neither a host name nor an address"):
        authority.check_host(host)


@given(st.text(max_size=40))
def test_a_host_that_passes_needs_no_quotes_anywhere(host: str) -> None:
    try:
        found = authority.check_host(host)
    except UsageError:
        return
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-:")
