"""The hospital's doctor on a folder as it was set up, and on damaged ones."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from client.agent import service
from client.provisioning import doctor, setup
from client.provisioning.home import Home, Settings, Users
from common import join_file, unix_user
from common.checkup import Finding, Level
from common.errors import UsageError

NOW = datetime.now(UTC)
ME = unix_user.myself().name


@pytest.fixture
def home(tmp_path: Path) -> Home:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    join = join_file.make(
        consortium="north",
        hospital="st-mary",
        address=f"127.0.0.1:{port}",
        ca_certificate=trustme.CA().cert_pem.bytes().decode(),
    )
    users = Users(agent=ME, gate=ME, bundle=ME)
    made = Settings(users=users, node_port=9094, gate_port=9095)
    return setup.set_up(tmp_path / "h", join, made, overrides=["model.architecture=test_vit"])


def examine(home: Home, environment: Any = None, **more: Any) -> dict[str, Finding]:
    found = doctor.examine(home, environment or {}, now=NOW, **{"data": False, **more})
    assert all(one.remedy for one in found if one.level is not Level.ok)
    assert not any("\n" in one.text for one in found)
    return {one.check: one for one in found}


@contextmanager
def opened(path: Path) -> Iterator[None]:
    door = service.listen(path)
    try:
        yield
    finally:
        door.close()
        path.unlink()


def test_what_was_set_up_is_sound_and_what_does_not_run_is_named(home: Home) -> None:
    found = examine(home)
    failing = {name for name, one in found.items() if one.level is Level.fail}
    assert failing == {"server", "agent's socket", "gate's socket"}
    assert "fedward-agent" in found["agent's socket"].remedy
    assert found["users"].level is Level.warn
    assert found["bundles"].level is Level.warn
    assert (found["policy"].level, "my-study" in found["policy"].text) == (Level.warn, True)


def test_sockets_that_answer_are_sound_and_dead_ones_are_not(home: Home) -> None:
    with opened(home.agent_socket):
        assert examine(home)["agent's socket"].level is Level.ok
        home.agent_socket.chmod(0o666)
        found = examine(home)["agent's socket"]
        assert (found.level, "mode 666" in found.text) == (Level.fail, True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home.gate_socket))
    home.gate_socket.chmod(0o660)
    assert "nobody answers" in examine(home)["gate's socket"].text


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("gate/node.key", 0o640),
        ("gate/superexec.secret", 0o604),
        ("agent/state", 0o750),
        ("agent/state/ledgers/site.key", 0o660),
        ("bundle", 0o755),
        ("policy.yaml", 0o664),
    ],
)
def test_every_file_that_is_open_to_others_fails(home: Home, name: str, mode: int) -> None:
    (home.path / name).chmod(mode)
    found = examine(home)[f"file {Path(name).name}"]
    assert found.level is Level.fail
    assert found.remedy.startswith("chmod ")


def test_decisions_that_cannot_be_read_fail(home: Home) -> None:
    home.policy.write_text("paused: maybe\n")
    assert examine(home)["policy"].level is Level.fail
    text = home.site_file.read_text()
    home.site_file.write_text(text.replace("test_vit", "test_vit, sed=3"))
    assert examine(home)["site.yaml"].level is Level.fail


def test_a_paused_policy_and_one_for_the_study(home: Home) -> None:
    text = home.policy.read_text().replace("my-study:", "phantom:")
    home.policy.write_text(text)
    assert examine(home)["policy"].level is Level.ok
    home.policy.write_text(text.replace("paused: false", "paused: true"))
    assert examine(home)["policy"].level is Level.warn


def test_a_list_of_approvals_that_the_site_did_not_sign_fails(home: Home) -> None:
    (home.path / "agent" / "approvals.json").write_text('{"approved": [], "signature": "00"}')
    assert examine(home)["bundles"].level is Level.fail


def test_the_proxy_of_proxy_env_is_used_and_not_for_this_machine(home: Home) -> None:
    (home.path / "proxy.env").write_text("# ours\nHTTPS_PROXY=http://127.0.0.1:1\n")
    found = examine(home)
    assert found["proxy"].level is Level.ok
    assert "NO_PROXY=127.0.0.1,localhost" in found["proxy"].text
    assert found["server"].level is Level.fail


def test_an_authority_that_ended_fails(home: Home) -> None:
    late = datetime(3001, 1, 1, tzinfo=UTC)
    found = doctor.examine(home, {}, now=late, data=False)
    [authority] = [one for one in found if one.check == "certificate of the authority"]
    assert authority.level is Level.fail


def test_the_study_is_checked_by_check_data(home: Home) -> None:
    assert examine(home, data=True)["data"].level is Level.ok
    text = home.site_file.read_text()
    home.site_file.write_text(
        text.replace('"model.', '"data=chest_xray", "data.root=/nonexistent", "model.')
    )
    assert examine(home, data=True)["data"].level is Level.fail


def test_another_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a hospital's folder"):
        doctor.examine(Home(path=tmp_path), {}, now=NOW, data=False)


def test_a_hospital_that_would_serve_phantoms_is_warned(home: Home) -> None:
    said = examine(home)["study"]
    assert (said.level, said.text) == (Level.warn, "phantoms, made up: no patients")
    text = home.site_file.read_text()
    study = '"experiment=cbis_masses", "data.root=/srv/images", "model.architecture'
    home.site_file.write_text(text.replace('"model.architecture', study))
    assert "study" not in examine(home)
