"""``fedward site doctor``: what is wrong in a hospital's installation."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from client.agent import approval, gate_file, pinned, policy_file, site_file
from client.agent.policy import Policy
from client.agent.site_file import MADE_UP, SiteFile
from client.provisioning import home as homes
from client.provisioning.home import Home
from common import machine
from common.checkup import Finding, fail, ok, warn
from common.config import StudyKind
from common.errors import FedwardError, UsageError
from common.exchange import in_groups
from common.unix_user import UnixUser

_PACKAGES = ("flwr", "opacus", "dp-accounting")
_DATA_SECONDS = 3600


def examine(
    home: Home, environment: Mapping[str, str], *, now: datetime, data: bool
) -> list[Finding]:
    """Everything that can be looked at; nothing is changed.

    Args:
        home: the hospital's folder.
        environment: for the proxy, under what ``proxy.env`` says.
        now: this machine's time.
        data: whether the study is opened and checked, which may take a while.

    Raises:
        UsageError: This is no hospital's folder.
    """
    settings, join = home.settings(), home.join()
    around = {**environment, **_proxy_file(home)}
    around["NO_PROXY"] = _with_loopback(around.get("NO_PROXY", ""))  # as start/supernode does
    way = around.get("HTTPS_PROXY") or around.get("https_proxy")
    return [
        *machine.versions(*_PACKAGES),
        machine.disk(home.path),
        machine.certificate(
            "authority",
            join.ca_certificate.encode(),
            now=now,
            remedy="ask the consortium for a new join file",
        ),
        machine.proxy(around, join.address),
        *machine.reach(join.address, join.ca_certificate.encode(), now=now, way=way),
        *_files(home, settings),
        *_sockets(home),
        *_decisions(home, data=data),
    ]


def _files(home: Home, settings: homes.Settings) -> list[Finding]:
    try:
        owners = home.owners()
    except UsageError as error:
        return [
            fail("users", str(error), f"systemd-sysusers {home.path}/systemd/fedward-site.conf")
        ]
    agent, gate, bundle = (owners[name] for name in ("agent", "gate", "bundle"))
    found = [
        machine.owned(home.path / "agent", mode=0o750, owner=agent),
        machine.owned(home.path / "gate", mode=0o750, owner=gate),
        machine.owned(home.path / "bundle", mode=0o700, owner=bundle),
        machine.owned(home.state, mode=0o700, owner=agent),
        machine.owned(home.state / "ledgers" / "site.key", mode=0o600, owner=agent),
        machine.owned(home.node_key, mode=0o600, owner=gate),
        machine.owned(home.secret, mode=0o600, owner=gate),
        machine.owned(home.policy, mode=0o755),
        machine.owned(home.site_file, mode=0o755),
        machine.owned(home.gate_file, mode=0o755),
    ]
    if not settings.users.separate:
        text = f"one user ({agent.name}) runs everything: the server's code can read the data"
        found.append(warn("users", text, "set the hospital up with three users"))
    found += [
        fail(
            f"file {path.name}",
            f"of the user {owner.name}, who could change it",
            f"chown root {path}",
        )
        for path in (home.policy, home.site_file, home.gate_file, home.roster.parent, home.roster)
        for owner in {gate.uid: gate, bundle.uid: bundle}.values()
        if path.exists() and path.stat().st_uid == owner.uid and settings.users.separate
    ]
    return found


def _sockets(home: Home) -> list[Finding]:
    try:
        owners = home.owners()
    except UsageError:
        return []  # said of the files
    return [
        _socket("agent's socket", home.agent_socket, owners["agent"], "fedward-agent"),
        _socket("gate's socket", home.gate_socket, owners["gate"], "fedward-gate"),
    ]


def _socket(check: str, path: Path, owner: UnixUser, unit: str) -> Finding:
    rights = machine.owned(path, mode=0o660, owner=owner)
    if rights.level != "ok":
        text = "is not there" if "No such file" in rights.text else rights.text
        return fail(check, text, f"systemctl start {unit}; journalctl -u {unit} says more")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except PermissionError:
            return warn(check, "this user may not open it", "run the doctor as root")
        except OSError as error:
            return fail(check, f"nobody answers ({error.strerror})", f"systemctl restart {unit}")
    return ok(check, f"answers; {rights.text}")


def _decisions(home: Home, *, data: bool) -> list[Finding]:
    """Policy, approvals and study: what the hospital itself has to decide."""
    reading = policy_file.read(home.policy)
    found: list[Finding] = []
    try:
        file = site_file.read(home.site_file)
        data_config = file.config().data
    except FedwardError as error:
        return [fail("site.yaml", str(error), f"edit {home.site_file}")]
    study = data_config.name
    found.append(ok("site.yaml", f"{file.name}, study {study}"))
    if data_config.kind is StudyKind.phantom:
        remedy = f"name the study in {home.site_file}: settings, experiment=NAME"
        found.append(warn("study", MADE_UP, remedy))
    if reading.policy is None:
        found.append(fail("policy", reading.problem, "until then the agent refuses everything"))
    elif study not in reading.policy.studies:
        text = f"names {', '.join(reading.policy.studies) or 'no study'}, not {study}"
        found.append(warn("policy", text, f"allow it in {home.policy}, or nothing is trained"))
    elif reading.policy.paused:
        found.append(warn("policy", "paused", "paused: false, when rounds may begin"))
    else:
        found.append(ok("policy", f"sound; sha256 {reading.sha256[:16]}"))
    if reading.policy is not None and reading.policy.trust.shares_noise:
        found.append(_roster(home, file, reading.policy))
    found.append(_approvals(home, file))
    if data:
        found.append(_study(home, file))
    return found


def _roster(home: Home, file: SiteFile, policy: Policy) -> Finding:
    """What secure sums need beside the policy's permission."""
    remedy = "fedward site roster --pin FILE"
    try:
        key = gate_file.read(home.gate_file).public_key
    except UsageError as error:
        return fail("roster", str(error), f"edit {home.gate_file}")
    pin = pinned.read(file.roster, name=file.name, public_key=key)
    if pin.roster is None:
        return fail("roster", pin.problem, remedy)
    least = policy.trust.least_sites
    if len(pin.roster.names) < least:
        text = f"{len(pin.roster.names)} hospitals; the policy asks for {least}"
        return fail("roster", text, "ask the consortium, or think again of trust.least_sites")
    shown = in_groups(pin.digest)
    return ok("roster", f"{len(pin.roster.names)} hospitals, fingerprint {shown}")


def _approvals(home: Home, file: SiteFile) -> Finding:
    try:
        key = gate_file.read(home.gate_file).public_key
        if file.published is None:
            return fail("bundles", "site.yaml publishes no approvals", "published: in site.yaml")
        listed = approval.listed(file.published, key)
    except FedwardError as error:
        return fail("bundles", str(error), "look at fedward site log, then restart the agent")
    if not listed:
        return warn("bundles", "none is approved", "fedward site inspect FILE, then approve HASH")
    return ok("bundles", ", ".join(f"{one.name} {one.sha256[:16]}" for one in listed))


def _study(home: Home, file: SiteFile) -> Finding:
    """`fedward check-data` of the agent's settings, by the agent's user where root asks."""
    owner = home.owners()["agent"]
    words = ["-P", "-c", "from simulations.cli import main; main()", "check-data", *file.settings]
    how = {}
    if os.getuid() == 0 and owner.uid != 0:
        how = {"user": owner.uid, "group": owner.gid, "extra_groups": []}
    elif os.getuid() != owner.uid:
        return warn("data", "not looked at by this user", "run the doctor as root")
    remedy = f"fedward check-data {' '.join(file.settings)}"
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=home.path / "agent",
            env={**os.environ, "HOME": str(home.path / "agent"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_DATA_SECONDS,
            check=False,
            **how,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return fail("data", f"check-data did not run ({type(error).__name__})", remedy)
    last = ((done.stdout if done.returncode == 0 else done.stderr) or done.stdout).strip()
    text = (last.splitlines() or ["check-data said nothing"])[-1].rstrip(".")
    return ok("data", text) if done.returncode == 0 else fail("data", text, remedy)


def _proxy_file(home: Home) -> dict[str, str]:
    try:
        lines = (home.path / "proxy.env").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def _with_loopback(past: str) -> str:
    names = [one.strip() for one in past.split(",") if one.strip()]
    return ",".join(dict.fromkeys(["127.0.0.1", "localhost", *names]))
