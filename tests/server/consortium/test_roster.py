"""``fedward consortium roster``, and runs that need one: who is in it, and who cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common import unix_user
from common.exchange import in_groups
from common.secure_aggregation import roster_file
from server import prepared
from server.consortium import founding
from server.consortium.folder import Folder, Settings
from server.consortium.members import Member, Members
from simulations.cli import main

NOW = datetime.now(UTC).replace(microsecond=0)
KEYS = {"st-mary": "ab" * 32, "st-luke": "cd" * 32, "st-anne": "ef" * 32}
RUN = [
    *("model.architecture=test_vit", "finetune=head", "data.image_size=32"),
    *("federation.trust=secure_aggregation", "federation.steps_per_round=1"),
    *("federation.max_dropouts=1", "training.optimizer=sgd"),
]


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
def folder(tmp_path: Path) -> Folder:
    """Three hospitals are admitted and a fourth is invited."""
    settings = Settings(
        name="north",
        hosts=("localhost",),
        port=8443,
        link_port=8000,
        health_port=8001,
        user=unix_user.myself().name,
    )
    place = founding.found(tmp_path / "server", settings, now=NOW)
    members = Members(folder=place)
    for name in (*KEYS, "st-john"):
        members.invite(name, now=NOW)
    for number, (name, key) in enumerate(KEYS.items()):
        found = members.get(name)
        members._write(replace(found, admitted="now", node_id=str(number), site_key=key))
    return place


def assert_one_line(said: Said, complaint: str) -> None:
    assert said.code == 2, said
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert complaint in said.err


def test_all_that_are_admitted_are_in_it_or_those_that_are_named(
    fedward: Command, folder: Folder, tmp_path: Path
) -> None:
    out = tmp_path / "roster.json"
    said = fedward("roster", folder.path, "--out", out)
    made = roster_file.read(out)
    assert (said.code, dict(made.roster.members), made.consortium) == (0, KEYS, "north")
    assert f"roster {made.fingerprint}" in said.out
    assert "st-mary  key abab-" in said.out
    assert_one_line(fedward("roster", folder.path, "--out", out), "File exists")
    fewer = tmp_path / "fewer.json"
    assert fedward("roster", folder.path, "st-luke", "st-mary", "--out", fewer).code == 0
    assert roster_file.read(fewer).roster.names == ("st-luke", "st-mary")


def test_who_is_not_admitted_or_alone_is_in_none(
    fedward: Command, folder: Folder, tmp_path: Path
) -> None:
    out = tmp_path / "roster.json"
    for words, complaint in (
        (("st-mary", "st-john"), "hospital=st-john: is invited, not admitted"),
        (("st-mary", "st-nobody"), "was not invited"),
        (("st-mary",), "2 to 100 can take part"),
    ):
        assert_one_line(fedward("roster", folder.path, *words, "--out", out), complaint)
    members = Members(folder=folder)
    gone: Member = replace(members.get("st-mary"), admitted=None, node_id=None, revoked="now")
    members._write(gone)
    assert fedward("roster", folder.path, "--out", out).code == 0
    assert roster_file.read(out).roster.names == ("st-anne", "st-luke")


def test_a_run_with_shared_noise_names_the_roster_that_hospitals_have_to_have_pinned(
    fedward: Command, folder: Folder, tmp_path: Path
) -> None:
    fedward("roster", folder.path, "--out", tmp_path / "roster.json")
    made = roster_file.read(tmp_path / "roster.json")
    sites = "federation.sites=[st-mary,st-luke,st-anne]"
    said = fedward("prepare", folder.path, "first", *RUN, sites)
    assert said.code == 0, said.err
    assert f"roster {made.fingerprint}" in said.out
    identities = prepared.find(folder.runs, "first").identities()
    assert identities == made.roster
    assert in_groups(made.roster.digest) == made.fingerprint
    others = "federation.sites=[st-mary,st-luke,st-john]"
    complaint = "the key of st-john is not known; it has to enrol and be admitted first"
    assert_one_line(fedward("prepare", folder.path, "second", *RUN, others), complaint)
    assert [path.name for path in folder.runs.iterdir()] == ["first"]


def test_a_run_in_which_each_has_its_own_noise_has_no_roster(
    fedward: Command, folder: Folder
) -> None:
    plain = [*RUN[:3], "federation.sites=[st-mary,st-luke]"]
    said = fedward("prepare", folder.path, "plain", *plain)
    assert said.code == 0
    assert "roster" not in said.out
    assert prepared.find(folder.runs, "plain").identities() is None


def test_a_run_is_not_prepared_for_a_hospital_that_was_revoked(
    fedward: Command, folder: Folder
) -> None:
    members = Members(folder=folder)
    gone: Member = replace(members.get("st-mary"), admitted=None, node_id=None, revoked="now")
    members._write(gone)
    plain = [*RUN[:3], "federation.sites=[st-mary,st-luke]"]
    said = fedward("prepare", folder.path, "plain", *plain)
    assert_one_line(said, "hospital=st-mary: is revoked")
    assert not folder.runs.exists() or not list(folder.runs.iterdir())
