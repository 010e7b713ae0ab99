"""What ``site init`` writes: keys, modes, units, compose; and what it never writes over."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from client.agent import gate_file, policy_file, site_file
from client.provisioning import node_key, setup
from client.provisioning.home import Home, Settings, Users
from common import join_file, unix_user
from common.errors import UsageError
from common.join_file import JoinFile
from common.privacy.keys import SiteKey

NOW = datetime.now(UTC).replace(microsecond=0)
ME = unix_user.myself().name
OVERRIDES = ["model.architecture=test_vit", "finetune=head"]


@pytest.fixture(scope="module")
def join() -> JoinFile:
    return join_file.make(
        consortium="north",
        hospital="st-mary",
        address="fed.example.org:8443",
        ca_certificate=trustme.CA().cert_pem.bytes().decode(),
    )


def settings(agent: str = ME, gate: str = ME, bundle: str = ME) -> Settings:
    users = Users(agent=agent, gate=gate, bundle=bundle)
    return Settings(users=users, node_port=9094, gate_port=9095)


def three() -> Settings:
    return settings("61001", "61002", "61003")


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")


def test_every_file_is_read_by_who_has_to_read_it(tmp_path: Path, join: JoinFile) -> None:
    home = setup.set_up(tmp_path / "home", join, settings(), overrides=OVERRIDES)
    file = site_file.read(home.site_file)
    assert (file.name, file.socket, file.gate) == ("st-mary", home.agent_socket, None)
    assert file.config().model.architecture == "test_vit"
    gate = gate_file.read(home.gate_file)
    assert (gate.socket, gate.agent) == (home.gate_socket, home.agent_socket)
    assert gate.approvals == file.published
    assert gate.public_key == SiteKey.load(file.ledgers / "site.key").public_key
    reading = policy_file.read(home.policy)
    assert reading.policy is not None
    assert reading.policy.studies
    enrolled = setup.enrol(home)
    assert (enrolled.consortium, enrolled.hospital) == ("north", "st-mary")
    assert enrolled.site_key == gate.public_key
    assert enrolled.node_key == node_key.load(home.node_key).public
    load_ssh_public_key(enrolled.node_key.encode())


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_openssh_reads_the_key_and_it_is_no_other_hospitals(tmp_path: Path, join: JoinFile) -> None:
    keys = []
    for name in ("a", "b"):
        home = setup.set_up(tmp_path / name, join, settings(), overrides=OVERRIDES)
        words = ["ssh-keygen", "-y", "-f", home.node_key]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert said.split()[:2] == setup.enrol(home).node_key.split()
        keys.append((said, setup.enrol(home).site_key, home.secret.read_bytes()))
    assert all(one != two for one, two in zip(*keys, strict=True))


@needs_root
def test_each_user_owns_its_folder_and_none_what_decides(tmp_path: Path, join: JoinFile) -> None:
    home = setup.set_up(tmp_path / "home", join, three(), overrides=OVERRIDES)
    for name, uid, mode in (
        ("agent", 61001, 0o750),
        ("gate", 61002, 0o750),
        ("bundle", 61003, 0o700),
    ):
        folder = home.path / name
        assert stat.S_IMODE(folder.stat().st_mode) == mode
        assert {path.stat().st_uid for path in (folder, *folder.rglob("*"))} == {uid}
    for path in (home.node_key, home.secret, home.state / "ledgers" / "site.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.state.stat().st_mode) == 0o700
    for path in (home.path, home.site_file, home.policy, home.gate_file, home.path / "start"):
        assert path.stat().st_uid == 0
        assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0
    assert site_file.read(home.site_file).gate_uid() == 61002


@needs_root
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units_and_each_may_do_little(tmp_path: Path, join: JoinFile) -> None:
    home = setup.set_up(tmp_path / "home", join, three(), overrides=OVERRIDES)
    units = {path.stem: path for path in (home.path / "systemd").glob("*.service")}
    words = ["systemd-analyze", "verify", *units.values()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = {name: set(path.read_text().splitlines()) for name, path in units.items()}
    for name, one in lines.items():
        wanted = {"Restart=always", "NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077"}
        assert wanted | {"CapabilityBoundingSet=", "StartLimitIntervalSec=0"} <= one, name
    assert {"User=61001", "PrivateNetwork=yes"} <= lines["fedward-agent"]
    assert {"User=61002", "SupplementaryGroups=61001"} <= lines["fedward-gate"]
    assert {"User=61002", "RestartSec=15"} <= lines["fedward-supernode"]
    assert not any("SupplementaryGroups" in line for line in lines["fedward-supernode"])
    superexec = lines["fedward-superexec"]
    assert {"User=61003", "SupplementaryGroups=61002", "IPAddressDeny=any"} <= superexec
    [hidden] = [line for line in superexec if line.startswith("InaccessiblePaths=")]
    assert f"{home.path}/agent" in hidden


@needs_root
def test_compose_gives_no_privilege_and_the_bundle_neither_data_nor_keys(
    tmp_path: Path, join: JoinFile
) -> None:
    home = setup.set_up(tmp_path / "home", join, three(), overrides=OVERRIDES)
    services = yaml.safe_load((home.path / "compose.yaml").read_text())["services"]
    for one in services.values():
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "ports"} & set(one)
        assert one["healthcheck"]["test"][0] == "CMD"
    users = {name: one["user"] for name, one in services.items()}
    assert users == {
        "agent": "61001:61001",
        "supernode": "61002:61002",
        "gate": "61002:61002",
        "superexec": "61003:61003",
    }
    assert services["agent"]["network_mode"] == "none"
    data = [name for name, one in services.items() if "FEDWARD_DATA" in str(one["volumes"])]
    assert data == ["agent"]
    for name in ("superexec", "supernode"):
        assert f"{home.path}/agent" not in str(services[name]["volumes"])


def test_a_rotated_key_is_another_and_the_old_one_is_kept(tmp_path: Path, join: JoinFile) -> None:
    home = setup.set_up(tmp_path / "home", join, settings(), overrides=OVERRIDES)
    before, public = home.node_key.read_bytes(), setup.enrol(home)
    kept = setup.rotate_key(home, now=NOW)
    assert kept.read_bytes() == before
    assert stat.S_IMODE(home.node_key.stat().st_mode) == 0o600
    after = setup.enrol(home)
    assert after.node_key != public.node_key
    assert after.site_key == public.site_key
    with pytest.raises(UsageError, match="File exists"):
        setup.rotate_key(home, now=NOW)


def test_nothing_is_written_over_and_nothing_is_left_of_a_failure(
    tmp_path: Path, join: JoinFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = setup.set_up(tmp_path / "home", join, settings(), overrides=OVERRIDES)
    before = home.node_key.read_bytes()
    with pytest.raises(UsageError, match="not empty"):
        setup.set_up(tmp_path / "home", join, settings(), overrides=OVERRIDES)
    assert home.node_key.read_bytes() == before

    def no_room(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(setup.templates, "render", no_room)
    with pytest.raises(UsageError, match="No space left"):
        setup.set_up(tmp_path / "other", join, settings(), overrides=OVERRIDES)
    assert not (tmp_path / "other").exists()


def test_bad_places_and_users_are_one_line(tmp_path: Path, join: JoinFile) -> None:
    def refused(complaint: str, path: Path, given: Settings | None = None) -> None:
        with pytest.raises(UsageError, match=complaint) as caught:
            setup.set_up(path, join, given or settings(), overrides=OVERRIDES)
        assert "\n" not in str(caught.value)

    refused("too long for a socket", tmp_path / ("x" * 90))
    refused("letters, digits", tmp_path / "a b")
    refused("no such user", tmp_path / "home", settings("nobody-of-this", "61002", "61003"))
    with pytest.raises(UsageError, match="three different ones"):
        settings("61001", "61001", "61003")
    with pytest.raises(UsageError, match="two different ports"):
        Settings(users=three().users, node_port=9094, gate_port=9094)
    with pytest.raises(UsageError, match="not a hospital's folder"):
        Home(path=tmp_path).settings()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("nonsense", "--set nonsense: must be KEY=VALUE"),
        ("=3", "must be KEY=VALUE"),
        ("experiment=nosuch", "experiment=nosuch: no such choice"),
        ("data.rot=/srv", "data.rot: no such setting; did you mean data.root?"),
        ("privacy.epsilon=-1", "privacy.epsilon=-1"),
        ("3=4", "."),
    ],
)
def test_settings_that_there_are_not_leave_nothing_behind(
    words: str, complaint: str, tmp_path: Path, join: JoinFile
) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        setup.set_up(tmp_path / "home", join, settings(), overrides=[*OVERRIDES, words])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
