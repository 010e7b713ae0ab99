"""``fedward site init``: a folder with everything that a hospital needs, and its keys."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import configs
from client.agent import pinned, policy
from client.provisioning import home as homes
from client.provisioning import node_key
from client.provisioning.home import Home, Settings
from common import enrolment, templates, unix_user
from common.enrolment import Enrolment
from common.errors import LedgerError, UsageError
from common.files import write_atomically, write_new
from common.join_file import JoinFile
from common.privacy.book import KEY_NAME, LedgerBook
from common.privacy.keys import SiteKey
from common.secure_aggregation.roster_file import RosterFile

_PACKAGE = "client.provisioning"
_SECRET_BYTES = 32
_MODES = {"agent": 0o750, "gate": 0o750, "bundle": 0o700}
_PROCESSES = {"agent": "agent", "gate": "gate", "supernode": "gate", "superexec": "bundle"}
_SOCKET_BYTES = 107  # see unix(7)


def set_up(path: Path, join: JoinFile, settings: Settings, *, overrides: Sequence[str]) -> Home:
    """Make the folder at ``path``, which must not be there yet, whole or not at all.

    Args:
        path: the hospital's folder.
        join: the consortium's invitation.
        settings: users and ports.
        overrides: the study and the model that the consortium agreed on.

    Raises:
        UsageError: There is something, it cannot be made, or there are no such settings.
    """
    for setting in overrides:
        name, equals, _ = setting.partition("=")
        if not (equals and name):
            raise UsageError(f"--set {setting}: must be KEY=VALUE")
    configs.load(overrides)
    home = Home(path=templates.plain_path("home", path))
    for socket in (home.agent_socket, home.gate_socket):
        if len(str(socket)) > _SOCKET_BYTES:
            raise UsageError(f"home={home.path}: too long for a socket; {_SOCKET_BYTES} characters")
    if home.path.exists() and (not home.path.is_dir() or any(home.path.iterdir())):
        raise UsageError(f"{home.path}: not empty; a hospital is set up in a folder of its own")
    for name in (settings.users.agent, settings.users.gate, settings.users.bundle):
        unix_user.find(name)
    made = not home.path.exists()
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        _fill(home, join, settings, overrides)
    except BaseException as error:
        for inside in home.path.iterdir() if home.path.is_dir() else ():
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        if made and home.path.is_dir():
            home.path.rmdir()
        if isinstance(error, OSError | LedgerError):
            raise UsageError(f"{home.path}: {error}") from error
        raise
    return home


def enrol(home: Home) -> Enrolment:
    """The public halves of the hospital's keys.

    Raises:
        UsageError: A key cannot be read; it takes root, or the users who own them.
    """
    join = home.join()
    try:
        site_key = SiteKey.load(home.state / "ledgers" / KEY_NAME).public_key
    except LedgerError as error:
        raise UsageError(str(error)) from error
    return enrolment.make(
        consortium=join.consortium,
        hospital=join.hospital,
        node_key=node_key.load(home.node_key).public,
        site_key=site_key,
    )


def pin(home: Home, given: RosterFile) -> None:
    """Pins a roster in place of the one before, if it can be this hospital's.

    Raises:
        UsageError: It is another consortium's, does not name this hospital with its own key, or
            cannot be written.
    """
    own = enrol(home)
    if given.consortium != own.consortium:
        raise UsageError(f"roster: of the consortium {given.consortium}, not {own.consortium}")
    pinned.check_own(given.roster, name=own.hospital, public_key=own.site_key)
    try:
        home.roster.parent.mkdir(mode=0o755, exist_ok=True)  # older folders have none
        write_atomically(home.roster, given.dumps())
    except OSError as error:
        raise UsageError(f"{home.roster}: {error.strerror}") from error


def rotate_key(home: Home, *, now: datetime) -> Path:
    """A new key of the SuperNode; the old one is kept beside, under the day's name.

    The agent's key stays: ledgers and spend statements hang on it.

    Returns:
        Where the old key is.

    Raises:
        UsageError: The old key is not there, or the new one cannot be written.
    """
    gate = home.owners()["gate"]
    kept = home.node_key.with_name(f"node-until-{now:%Y%m%dT%H%M%SZ}.key")
    try:
        write_new(kept, home.node_key.read_bytes(), mode=0o600)
        gate.own(kept)
        write_atomically(home.node_key, node_key.generate().private, mode=0o600)
        gate.own(home.node_key)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    return kept


def _fill(home: Home, join: JoinFile, settings: Settings, overrides: Sequence[str]) -> None:
    home.path.chmod(0o755)
    write_new(home.settings_file, homes.dump(settings))
    write_new(home.join_file, join.dumps())
    write_new(home.ca_certificate, join.ca_certificate)
    for name, mode in _MODES.items():
        (home.path / name).mkdir()
        (home.path / name).chmod(mode)
    home.roster.parent.mkdir()
    home.roster.parent.chmod(0o755)
    home.state.mkdir(mode=0o700)
    site_key = LedgerBook.at(home.state / "ledgers").key.public_key
    write_new(home.node_key, node_key.generate().private, mode=0o600)
    write_new(home.secret, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
    owners = home.owners()
    values = {
        "home": str(home.path),
        "join": join,
        "site_key": site_key,
        "node_port": settings.node_port,
        "gate_port": settings.gate_port,
        "separate": settings.users.separate,
        "overrides": json.dumps(list(overrides)),
        "bin": str(templates.plain_path("python", Path(sys.executable)).parent),
        **owners,
    }
    write_new(home.policy, policy.template())
    for name in ("site.yaml", "gate.yaml", "compose.yaml"):
        write_new(home.path / name, templates.render(_PACKAGE, f"{name}.j2", **values))
    write_new(home.path / "proxy.env", templates.render(_PACKAGE, "proxy.env.j2"), mode=0o600)
    _write_processes(home, values)
    for name, owner in owners.items():
        owner.own_all(home.path / name)


def _write_processes(home: Home, values: dict[str, object]) -> None:
    for name in ("start", "systemd"):
        (home.path / name).mkdir(mode=0o755)
    for what, folder in _PROCESSES.items():
        text = templates.render(_PACKAGE, f"{what}.sh.j2", **values)
        write_new(home.path / "start" / what, text, mode=0o755)
        unit = templates.render(_PACKAGE, "unit.service.j2", what=what, folder=folder, **values)
        write_new(home.path / "systemd" / f"fedward-{what}.service", unit)
    sysusers = templates.render(_PACKAGE, "sysusers.conf.j2", **values)
    write_new(home.path / "systemd" / "fedward-site.conf", sysusers)
