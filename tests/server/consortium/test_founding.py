"""What ``consortium init`` writes: modes, nginx, units, compose; and what it never writes over."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from common import unix_user
from common.errors import UsageError
from server.consortium import founding
from server.consortium.folder import Folder, Settings

NOW = datetime.now(UTC).replace(microsecond=0)
SECRETS = {"ca/ca.key", "tls/server.key", "tls/superexec.secret"}
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin")


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "name": "north",
        "hosts": ("fed.example.org", "192.0.2.7"),
        "port": 8443,
        "link_port": 8000,
        "health_port": 8001,
        "user": unix_user.myself().name,
    }
    return Settings(**given | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return founding.found(tmp_path / "server", settings(), now=NOW)


def files_of(folder: Folder) -> dict[str, Path]:
    found = {str(path.relative_to(folder.path)): path for path in folder.path.rglob("*")}
    return {name: path for name, path in found.items() if path.is_file()}


def test_only_their_owner_may_read_what_is_secret(folder: Folder) -> None:
    files = files_of(folder)
    for name in SECRETS:
        assert stat.S_IMODE(files[name].stat().st_mode) == 0o600, name
        assert stat.S_IMODE(files[name].parent.stat().st_mode) == 0o700, name
    private = re.compile(rb"PRIVATE KEY")
    secret = folder.secret.read_bytes()
    assert len(secret) == 32
    for name, path in files.items():
        content = path.read_bytes()
        assert name in SECRETS or not (private.search(content) or secret in content), name


def test_two_consortia_share_no_secret(folder: Folder, tmp_path: Path) -> None:
    other = founding.found(tmp_path / "other", settings(), now=NOW)
    for one, two in ((folder.secret, other.secret), (folder.ca_key, other.ca_key)):
        assert one.read_bytes() != two.read_bytes()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_takes_its_configuration(folder: Folder) -> None:
    words = [str(NGINX), "-t", "-p", folder.path / "nginx", "-c", folder.path / "nginx.conf"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(folder: Folder) -> None:
    units = sorted((folder.path / "systemd").glob("*.service"))
    assert len(units) == 3
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_units_come_back_and_may_do_little(folder: Folder) -> None:
    for unit in (folder.path / "systemd").glob("*.service"):
        lines = set(unit.read_text().splitlines())
        wanted = {"Restart=always", "NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077"}
        assert wanted | {"CapabilityBoundingSet="} <= lines, unit
        assert f"InaccessiblePaths={folder.path}/ca {folder.path}/flower" in lines


def test_a_port_below_1024_gets_the_one_capability_that_it_needs(tmp_path: Path) -> None:
    made = founding.found(tmp_path / "server", settings(port=443), now=NOW)
    units = {p.stem: p.read_text() for p in (made.path / "systemd").glob("*.service")}
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in units["fedward-nginx"]
    assert "AmbientCapabilities" not in units["fedward-superlink"]


def test_compose_gives_no_privilege_and_one_port(folder: Folder) -> None:
    services = yaml.safe_load((folder.path / "compose.yaml").read_text())["services"]
    assert set(services) == {"superlink", "superexec", "nginx", "admin"}
    ports = [port for one in services.values() for port in one.get("ports", [])]
    assert ports == ["8443:8443"]
    for name, one in services.items():
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in one
        assert ("healthcheck" in one) == (name != "admin")
        mounts = [volume.split(":")[0] for volume in one["volumes"]]
        if name != "admin":
            assert not {str(folder.path), f"{folder.path}/ca", f"{folder.path}/flower"} & {*mounts}
            assert one["network_mode" if name != "superlink" else "ports"]
    assert services["nginx"]["network_mode"] == "service:superlink"


def test_the_superlink_is_on_loopback_with_names_of_nodes_and_its_own_superexec(
    folder: Folder,
) -> None:
    words = (folder.path / "start" / "superlink").read_text().split()
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in words
    assert words[words.index("--isolation") + 1] == "process"
    assert words[words.index("--superexec-auth-secret-file") + 1] == str(folder.secret)


def test_nothing_is_written_over_and_nothing_is_left_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter").write_text("dear")
    with pytest.raises(UsageError, match="not empty"):
        founding.found(taken, settings(), now=NOW)
    assert [path.name for path in taken.iterdir()] == ["letter"]

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "nginx.conf")

    monkeypatch.setattr(founding.templates, "render", no_room)
    for path in (tmp_path / "new", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        with pytest.raises(UsageError, match="No space left"):
            founding.found(path, settings(), now=NOW)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "../north"}, "letters, digits"),
        ({"hosts": ()}, "at least one name"),
        ({"hosts": ("a b",)}, "neither a host name"),
        ({"port": 8000}, "three different ports"),
        ({"port": 70000}, "port=70000: must be from 1 to 65535"),
    ],
)
def test_bad_settings_are_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        settings(**changes)
    assert "\n" not in str(caught.value)


def test_a_path_that_would_need_quotes_and_an_unknown_user_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        founding.found(tmp_path / "a b;c", settings(), now=NOW)
    with pytest.raises(UsageError, match="no such user"):
        founding.found(tmp_path / "server", settings(user="nobody-of-this-name"), now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_rotation_keeps_the_old_pair_and_names_new_hosts(folder: Folder) -> None:
    before = (folder.server_key.read_bytes(), folder.server_certificate.read_bytes())
    later = NOW + timedelta(days=300)
    kept = founding.rotate(folder, hosts=("new.example.org",), now=later)
    assert (kept.with_name("server.key").read_bytes(), kept.read_bytes()) == before
    assert stat.S_IMODE(kept.with_name("server.key").stat().st_mode) == 0o600
    found = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
    found.verify_directly_issued_by(folder.authority().parsed)
    assert found.not_valid_after_utc > later + timedelta(days=390)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["new.example.org", "localhost"]
    assert folder.settings().hosts == ("new.example.org",)
    with pytest.raises(UsageError, match="File exists"):
        founding.rotate(folder, hosts=(), now=later)


def test_a_rotation_without_the_authoritys_key_changes_nothing(folder: Folder) -> None:
    folder.ca_key.unlink()
    before = folder.server_certificate.read_bytes()
    with pytest.raises(UsageError, match=r"ca\.key: No such file"):
        founding.rotate(folder, hosts=(), now=NOW)
    assert folder.server_certificate.read_bytes() == before


@dataclass(frozen=True)
class Damage:
    change: Callable[[str], str]
    complaint: str


@pytest.mark.parametrize(
    "damage",
    [
        Damage(lambda text: text[:-20], "damaged"),
        Damage(lambda text: text.replace("consortium/1", "consortium/2"), "not of fedward"),
        Damage(lambda text: text.replace('"north"', '"nor th"'), "letters, digits"),
        Damage(lambda text: text.replace('"user"', '"users"'), "damaged"),
        Damage(lambda text: "[]", "damaged"),
    ],
)
def test_a_damaged_settings_file_is_one_line(folder: Folder, damage: Damage) -> None:
    folder.settings_file.write_text(damage.change(folder.settings_file.read_text()))
    with pytest.raises(UsageError, match=damage.complaint) as caught:
        folder.settings()
    assert "\n" not in str(caught.value)
