"""``fedward consortium init``: a folder with everything that the server needs."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from common import templates, unix_user
from common.errors import UsageError
from common.files import write_atomically, write_new
from common.unix_user import UnixUser
from server.consortium import authority
from server.consortium.folder import CONNECTION, Folder, Settings

_PACKAGE = "server.consortium"
_SECRET_BYTES = 32
_OWN = ("tls", "link", "exec", "runs", "nginx")
_SCRIPTS = ("superlink", "superexec", "nginx")


def found(path: Path, settings: Settings, *, now: datetime) -> Folder:
    """Make the folder at ``path``, which must not be there yet, whole or not at all.

    Raises:
        UsageError: There is something, or it cannot be made.
    """
    path = templates.plain_path("folder", path)
    user = unix_user.find(settings.user)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path}: not empty; a consortium is founded in a folder of its own")
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        _fill(Folder(path=path), settings, user, now)
    except BaseException as error:
        _undo(path, made)
        if isinstance(error, OSError):
            raise UsageError(f"{error.filename or path}: {error.strerror}") from error
        raise
    return Folder(path=path)


def rotate(folder: Folder, *, hosts: Sequence[str], now: datetime) -> Path:
    """A new server key and certificate; the old ones are kept beside, under the day's name.

    Args:
        folder: of the consortium.
        hosts: what hospitals dial from now on; empty: as before.
        now: the time.

    Returns:
        Where the old certificate is.

    Raises:
        UsageError: The authority's key is not there, or a host is none.
    """
    settings = folder.settings()
    changed = replace(settings, hosts=tuple(hosts)) if hosts else settings
    pair = authority.issue(folder.authority(), changed.hosts, now=now)
    kept = folder.path / "tls" / f"until-{now:%Y%m%dT%H%M%SZ}"
    user = unix_user.find(settings.user)
    try:
        kept.mkdir(mode=0o700)
        for old in (folder.server_key, folder.server_certificate):
            shutil.copy2(old, kept / old.name)
        user.own_all(kept)
        write_atomically(folder.server_key, pair.key, mode=0o600)
        write_atomically(folder.server_certificate, pair.certificate, mode=0o644)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    user.own(folder.server_key)
    user.own(folder.server_certificate)
    folder.save(changed)
    return kept / folder.server_certificate.name


def _fill(folder: Folder, settings: Settings, user: UnixUser, now: datetime) -> None:
    path = folder.path
    path.chmod(0o755)
    (path / "ca").mkdir(mode=0o700)
    for name in (*_OWN, "hospitals", "flower"):
        (path / name).mkdir(mode=0o700)
    for name in ("start", "systemd"):
        (path / name).mkdir(mode=0o755)
    root = authority.found(settings.name, now=now)
    write_new(folder.ca_key, root.key, mode=0o600)
    write_new(folder.ca_certificate, root.certificate)
    pair = authority.issue(root, settings.hosts, now=now)
    write_new(folder.server_key, pair.key, mode=0o600)
    write_new(folder.server_certificate, pair.certificate)
    write_new(folder.secret, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
    folder.save(settings)
    values = {
        "folder": str(path),
        "name": settings.name,
        "user": user,
        "admin": unix_user.myself(),
        "port": settings.port,
        "link_port": settings.link_port,
        "health_port": settings.health_port,
        "connection": CONNECTION,
        "bin": str(templates.plain_path("python", Path(sys.executable)).parent),
        "nginx": shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") or "nginx",
    }
    for script in _SCRIPTS:
        text = templates.render(_PACKAGE, f"{script}.sh.j2", **values)
        write_new(path / "start" / script, text, mode=0o755)
        unit = templates.render(_PACKAGE, "unit.service.j2", what=script, **values)
        write_new(path / "systemd" / f"fedward-{script}.service", unit)
    sysusers = templates.render(_PACKAGE, "sysusers.conf.j2", **values)
    write_new(path / "systemd" / "fedward-server.conf", sysusers)
    write_new(path / "nginx.conf", templates.render(_PACKAGE, "nginx.conf.j2", **values))
    write_new(path / "compose.yaml", templates.render(_PACKAGE, "compose.yaml.j2", **values))
    config = templates.render(_PACKAGE, "config.toml.j2", **values)
    write_new(folder.flower_home / "config.toml", config, mode=0o600)
    for name in _OWN:
        user.own_all(path / name)


def _undo(path: Path, made: bool) -> None:
    if made:
        shutil.rmtree(path, ignore_errors=True)
        return
    for inside in path.iterdir():
        if inside.is_dir():
            shutil.rmtree(inside, ignore_errors=True)
        else:
            inside.unlink()
