"""``fedward consortium`` as it is typed; what needs no running SuperLink."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import configs
from client.agent import bundle as bundles
from common import enrolment, join_file
from server import prepared
from server.consortium.folder import Folder
from simulations.cli import main

RUN = ["model.architecture=test_vit", "finetune=head", "data.image_size=32"]


@dataclass
class Said:
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def fedward(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedward", "consortium", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def folder(fedward: Command, tmp_path: Path) -> Path:
    path = tmp_path / "server"
    assert fedward("init", path, "--name", "north", "--host", "localhost,192.0.2.7").code == 0
    return path


def assert_one_line(said: Said, complaint: str) -> None:
    assert said.code == 2, said
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert complaint in said.err


def test_from_init_to_a_join_file_with_one_fingerprint(
    fedward: Command, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "join.json"
    said = fedward("invite", folder, "st-mary", "--out", out)
    assert said.code == 0
    join = join_file.read(out)
    assert (join.hospital, join.address) == ("st-mary", "localhost:8443")
    assert join.fingerprint in said.out
    assert_one_line(fedward("invite", folder, "st-mary", "--out", out), "File exists")
    listed = json.loads(fedward("members", folder, "--json").out)
    assert [(one["hospital"], one["state"]) for one in listed] == [("st-mary", "invited")]


def test_who_got_no_join_file_is_not_listed(fedward: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("something")
    for out, complaint in ((tmp_path / "taken", "File exists"), (tmp_path / "no" / "x", "No such")):
        assert_one_line(fedward("invite", folder, "other", "--out", out), complaint)
    assert (tmp_path / "taken").read_text() == "something"
    assert json.loads(fedward("members", folder, "--json").out) == []


def test_a_wrong_fingerprint_and_nobody_to_ask_admit_nobody(
    fedward: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fedward("invite", folder, "st-mary", "--out", tmp_path / "join.json")
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    given = enrolment.make(
        consortium="north",
        hospital="st-mary",
        node_key=key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        site_key="ab" * 32,
    )
    path = tmp_path / "enrolment.json"
    path.write_text(given.dumps())
    wrong = given.fingerprint[:-1] + ("0" if given.fingerprint[-1] != "0" else "1")
    assert_one_line(fedward("admit", folder, path, "--fingerprint", wrong), "do not admit it")
    monkeypatch.setattr("os.isatty", lambda _: False)
    assert_one_line(fedward("admit", folder, path), "--fingerprint")
    # the right one gets as far as the SuperLink, which does not run here
    said = fedward("admit", folder, path, "--fingerprint", given.fingerprint.upper())
    assert_one_line(said, "does the SuperLink run on this machine?")
    assert json.loads(fedward("members", folder, "--json").out)[0]["state"] == "invited"


def test_the_apps_bundle_holds_names_and_no_code_and_is_always_the_same(
    fedward: Command, folder: Path, tmp_path: Path
) -> None:
    hashes = set()
    for name in ("one", "two"):
        said = fedward("app", folder, tmp_path / name)
        found = bundles.read(tmp_path / name / "app.fab")
        assert found.sha256 in said.out
        assert not [path for path in found.files if path.endswith(".py")]
        assert found.components == {
            "serverapp": "server.deployed:app",
            "clientapp": "client.app:app",
        }
        hashes.add(found.sha256)
    assert len(hashes) == 1
    assert_one_line(fedward("app", folder, tmp_path / "one"), "is there already")


def test_a_prepared_run_is_whole_and_named_once(
    fedward: Command, folder: Path, tmp_path: Path
) -> None:
    sites = "federation.sites=[st-mary,st-luke]"
    for name in ("st-mary", "st-luke"):
        assert fedward("invite", folder, name, "--out", tmp_path / name).code == 0
    assert fedward("prepare", folder, "first", *RUN, sites).code == 0
    run = prepared.find(Folder(path=folder).runs, "first")
    assert run.config().federation.sites == ["st-mary", "st-luke"]
    start = run.checkpoint()
    assert (start.round, start.history, bool(start.weights)) == (0, (), True)
    assert len(run.frozen_sha256()) == 64
    assert configs.read_yaml(run.config_file).model.architecture == "test_vit"
    assert_one_line(fedward("prepare", folder, "first", *RUN, sites), "is prepared already")
    assert_one_line(fedward("prepare", folder, "../x", *RUN, sites), "letters, digits")
    others = "federation.sites=[st-mary,st-nobody]"
    complaint = "hospital=st-nobody: was not invited"
    assert_one_line(fedward("prepare", folder, "second", *RUN, others), complaint)
    assert_one_line(fedward("prepare", folder, "second", *RUN), "must name the hospitals")
    assert_one_line(
        fedward("prepare", folder, "second", *RUN, sites, "model.architecture=none"), "none"
    )
    assert [path.name for path in Folder(path=folder).runs.iterdir()] == ["first"]


def test_bad_words_are_one_line(fedward: Command, folder: Path, tmp_path: Path) -> None:
    assert_one_line(fedward("init", folder, "--name", "north", "--host", "localhost"), "not empty")
    assert_one_line(fedward("init", tmp_path / "x", "--name", "n", "--host", "a b"), "neither a")
    new = ("init", tmp_path / "x", "--name", "n", "--host", "localhost")
    assert_one_line(fedward(*new, "--port", 70000), "port=70000: must be from 1 to 65535")
    assert_one_line(fedward(*new, "--link-port", 0), "link-port=0: must be from 1 to 65535")
    assert_one_line(fedward(*new, "--port", 8000), "three different ports")
    for command in (("members",), ("doctor",), ("rotate",), ("app", tmp_path / "app")):
        assert_one_line(fedward(command[0], tmp_path, *command[1:]), "not a consortium's folder")
    assert_one_line(fedward("revoke", folder, "st-john"), "was not invited")
    assert_one_line(fedward("run", folder, tmp_path / "app", "none"), "not prepared")


def test_the_doctor_names_what_does_not_run(fedward: Command, folder: Path) -> None:
    said = fedward("doctor", folder, "--json")
    assert said.code == 1
    found = json.loads(said.out)
    assert found["ok"] is False
    levels = {one["check"]: one["level"] for one in found["findings"]}
    assert {levels[name] for name in ("server", "SuperLink", "hospitals")} == {"fail"}
    assert levels["certificate of the server (file)"] == "ok"
    (folder / "tls" / "server.key").chmod(0o644)
    said = fedward("doctor", folder)
    assert f"chmod 600 {folder}/tls/server.key" in said.out


def test_the_process_that_holds_the_rounds_imports_neither_torch_nor_a_hospitals_code() -> None:
    code = (
        "import sys\nimport server.deployed, server.consortium.command, server.consortium.doctor\n"
        "import server.consortium.founding, server.consortium.app_folder\n"
        "found = {n.partition('.')[0] for n in sys.modules} & {'torch', 'client', 'simulations'}\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
