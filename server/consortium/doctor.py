"""``fedward consortium doctor``: what is wrong at the server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from common import machine, unix_user
from common.checkup import Finding, fail, ok, warn
from common.errors import UsageError
from server.consortium.folder import Folder, Settings
from server.consortium.members import Members
from server.consortium.superlink import Superlink

_PACKAGES = ("flwr", "dp-accounting")
_SECONDS = 5.0
_ROTATE = "fedward consortium rotate, then restart the SuperLink and reload nginx"


def examine(folder: Folder, environment: Mapping[str, str], *, now: datetime) -> list[Finding]:
    """Everything that can be looked at; nothing is changed.

    Args:
        folder: the consortium's.
        environment: for the proxy.
        now: this machine's time.

    Raises:
        UsageError: This is no consortium's folder.
    """
    settings = folder.settings()
    authority = folder.ca_certificate.read_bytes() if folder.ca_certificate.is_file() else b""
    return [
        *machine.versions(*_PACKAGES),
        machine.disk(folder.path),
        machine.certificate(
            "authority", authority, now=now, remedy="found the consortium anew; all hospitals join"
        ),
        *_certificate(folder, settings, authority, now),
        machine.proxy(environment, "the SuperLink on loopback"),
        *_files(folder, settings),
        _nginx(folder, settings),
        *machine.reach(f"127.0.0.1:{settings.port}", authority, now=now, way=None),
        *_link(settings),
        *_members(folder),
    ]


def _certificate(
    folder: Folder, settings: Settings, authority: bytes, now: datetime
) -> list[Finding]:
    """The server certificate as it lies in the folder; nginx may still use the one before."""
    check = "server.crt"
    try:
        pem = folder.server_certificate.read_bytes()
        found = x509.load_pem_x509_certificate(pem)
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        return [warn(check, f"cannot be read ({error.strerror})", "run the doctor as root")]
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return [fail(check, "not a certificate of this consortium's authority", _ROTATE)]
    findings = [machine.certificate("server (file)", pem, now=now, remedy=_ROTATE)]
    covered = {*names.get_values_for_type(x509.DNSName)}
    covered |= {str(one) for one in names.get_values_for_type(x509.IPAddress)}
    missing = sorted(set(settings.hosts) - covered)
    if missing:
        findings.append(fail(check, f"does not name {', '.join(missing)}", _ROTATE))
    return findings


def _files(folder: Folder, settings: Settings) -> list[Finding]:
    try:
        user = unix_user.find(settings.user)
    except UsageError as error:
        unit = folder.path / "systemd" / "fedward-server.conf"
        return [fail("user", str(error), f"systemd-sysusers {unit}")]
    found = [
        machine.owned(folder.path / "tls", mode=0o700, owner=user),
        machine.owned(folder.server_key, mode=0o600, owner=user),
        machine.owned(folder.secret, mode=0o600, owner=user),
        machine.owned(folder.path / "link", mode=0o700, owner=user),
        machine.owned(folder.runs, mode=0o700, owner=user),
        machine.owned(folder.hospitals, mode=0o700),
    ]
    try:
        there = folder.ca_key.exists()
    except PermissionError:
        return found
    if there:
        found.append(machine.owned(folder.ca_key, mode=0o600))
        if folder.ca_key.stat().st_uid == user.uid and user.uid != os.getuid():
            text = f"of the user {user.name}, who serves hospitals"
            found.append(fail("file ca.key", text, f"chown root {folder.ca_key}"))
    else:
        found.append(ok("file ca.key", "not on this machine"))
    return found


def _nginx(folder: Folder, settings: Settings) -> Finding:
    """Nginx's own test of its configuration, as the user who runs it: it opens its logs."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        return fail("nginx", "not installed", "apt-get install nginx-light")
    how: dict[str, Any] = {}
    user = unix_user.find(settings.user)
    if os.getuid() == 0 and user.uid != 0:
        how = {"user": user.uid, "group": user.gid, "extra_groups": []}
    elif os.getuid() != user.uid:
        return warn("nginx", "not looked at by this user", "run the doctor as root")
    words = [program, "-t", "-q", "-p", folder.path / "nginx", "-c", folder.path / "nginx.conf"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", **how)
    said = " ".join(done.stderr.split())
    if done.returncode != 0:
        return fail("nginx", f"refuses nginx.conf ({said})", "put nginx.conf right")
    return ok("nginx", "nginx.conf is sound")


def _link(settings: Settings) -> list[Finding]:
    check, unit = "SuperLink", "fedward-superlink"
    if not _answers("127.0.0.1", settings.link_port):
        remedy = f"systemctl start {unit}; journalctl -u {unit} says more"
        return [fail(check, f"nobody answers at 127.0.0.1:{settings.link_port}", remedy)]
    open_at = [
        host
        for host in settings.hosts
        if not _resolves_to_loopback(host) and _answers(host, settings.link_port)
    ]
    if open_at:
        text = f"answers at {open_at[0]}:{settings.link_port}: anyone there can start runs"
        return [fail(check, text, "--host 127.0.0.1, as in start/superlink")]
    return [ok(check, f"answers at 127.0.0.1:{settings.link_port}, and not outside")]


def _members(folder: Folder) -> list[Finding]:
    check = "hospitals"
    try:
        known = Members(folder=folder).all()
        registered = {str(node.get("node-id")) for node in Superlink(folder=folder).nodes()}
    except UsageError as error:
        return [fail(check, str(error), "start the SuperLink; run the doctor as root")]
    except PermissionError:
        return [warn(check, "not looked at by this user", "run the doctor as root")]
    admitted = {one.node_id: one.hospital for one in known if one.node_id is not None}
    found = [
        fail(
            check,
            f"{name} is admitted, and the SuperLink does not know its key",
            "fedward consortium revoke and admit",
        )
        for number, name in admitted.items()
        if number not in registered
    ]
    for number in sorted(registered - set(admitted)):
        text = f"node {number} is registered, and of no hospital that was admitted"
        found.append(fail(check, text, f"flwr supernode unregister {number} consortium"))
    if not found:
        names = ", ".join(sorted(admitted.values())) or "none yet"
        found.append(ok(check, f"admitted: {names}"))
    return found


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            return True
    except OSError:
        return False


def _resolves_to_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return True  # not a name that this machine can try
    return all(str(one[4][0]).startswith("127.") or one[4][0] == "::1" for one in found)
