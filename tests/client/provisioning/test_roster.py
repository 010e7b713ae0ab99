"""``fedward site roster``: what is pinned, after whose word, and what is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from client.agent import pinned, site_file
from client.provisioning import doctor, setup
from client.provisioning.home import Home, Settings, Users
from common import join_file, unix_user
from common.secure_aggregation import roster_file
from simulations.cli import main

ME = unix_user.myself().name


@dataclass
class Said:
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def fedward(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedward", "site", "roster", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    join = join_file.make(
        consortium="north",
        hospital="st-mary",
        address="fed.example.org:8443",
        ca_certificate=trustme.CA().cert_pem.bytes().decode(),
    )
    users = Users(agent=ME, gate=ME, bundle=ME)
    settings = Settings(users=users, node_port=9094, gate_port=9095)
    return setup.set_up(tmp_path / "home", join, settings, overrides=["finetune=head"])


def roster(home: Home, *, consortium: str = "north", **keys: str) -> roster_file.RosterFile:
    """Of this hospital and another, unless ``keys`` say otherwise."""
    own = {"st-mary": setup.enrol(home).site_key, "st-luke": "cd" * 32}
    return roster_file.make(consortium, own | {n.replace("_", "-"): k for n, k in keys.items()})


def test_it_is_pinned_under_the_fingerprint_that_all_read_out(
    fedward: Command, home: Home, tmp_path: Path
) -> None:
    path, made = tmp_path / "roster.json", roster(home)
    path.write_text(made.dumps())
    said = fedward("--home", home.path)
    assert (said.code, said.out) == (2, "")
    assert "nothing is pinned yet" in said.err
    said = fedward("--home", home.path, "--pin", path, "--fingerprint", made.fingerprint.upper())
    assert (said.code, said.err) == (0, "")
    for word in ("st-luke  key cdcd-", f"roster {made.fingerprint}", "roster.json: pinned"):
        assert word in said.out
    assert "now add" not in said.out, "site.yaml names the file already"
    shown = fedward("--home", home.path)
    assert shown.out.splitlines() == said.out.splitlines()[:-1]
    file = site_file.read(home.site_file)
    found = pinned.read(file.roster, name=file.name, public_key=setup.enrol(home).site_key)
    assert (found.roster, found.problem) == (made.roster, "")
    for place in (home.roster, home.roster.parent):
        assert place.stat().st_mode & 0o022 == 0
        assert place.stat().st_mode & 0o004, "the agent's user reads it"


@pytest.mark.parametrize("case", ["fingerprint", "nobody to ask", "consortium", "name", "key"])
def test_what_cannot_be_this_hospitals_is_not_pinned(
    fedward: Command, home: Home, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = roster(home)
    complaint = "not that of the file; do not pin it"
    if case == "consortium":
        made, complaint = roster(home, consortium="south"), "of the consortium south, not north"
    if case == "name":
        keys = {"st-anne": "ab" * 32, "st-luke": "cd" * 32}
        made, complaint = roster_file.make("north", keys), "does not name st-mary"
    if case == "key":
        made, complaint = roster(home, st_mary="ab" * 32), "with another key than the one of its"
    path = tmp_path / "roster.json"
    path.write_text(made.dumps())
    given = ["--fingerprint", made.fingerprint]
    if case == "fingerprint":
        given = ["--fingerprint", roster(home, st_luke="ef" * 32).fingerprint]
    if case == "nobody to ask":
        monkeypatch.setattr("os.isatty", lambda _: False)
        given, complaint = [], "as the other hospitals read it out"
    said = fedward("--home", home.path, "--pin", path, *given)
    assert said.code == 2
    assert complaint in said.err
    assert said.err.count("\n") == 1
    assert not home.roster.exists()


POLICY = """\
schema: fedward.policy/1
studies:
  phantom: {epsilon: 8.0, epsilon_alone: 30.0, delta: 1e-3}
smallest_noise_multiplier: 1.0
smallest_expected_batch: 3
largest_sampling_rate: 0.5
largest_steps: 4
models: ["*"]
trust: {accepted: [secure_aggregation], least_sites: 2, least_colluders: 0}
"""


def test_the_doctor_looks_at_the_roster_where_the_policy_needs_one(home: Home) -> None:
    def level() -> dict[str, str]:
        return {f.check: f.level for f in doctor._decisions(home, data=False)}

    assert "roster" not in level()
    home.policy.write_text(POLICY)
    assert level()["roster"] == "fail"
    setup.pin(home, roster(home))
    assert level()["roster"] == "ok"
    home.policy.write_text(POLICY.replace("least_sites: 2", "least_sites: 3"))
    assert level()["roster"] == "fail"
    home.policy.write_text(POLICY)
    home.roster.chmod(0o666)
    assert level()["roster"] == "fail"
