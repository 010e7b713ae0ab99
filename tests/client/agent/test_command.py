"""``fedward site`` as it is typed; what needs no running agent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509

from client.agent.audit import Kind
from common.privacy.book import LedgerBook
from simulations.cli import main

SITE = """\
schema: fedward.site/1
name: hospital-1
socket: agent.sock
policy: policy.yaml
state: .
settings: []
"""


@dataclass
class Said:
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def fedward(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedward", "site", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def home(place: Any) -> Any:
    """The hospital's folder with a ``site.yaml`` whose state it is."""
    (place.folder / "site.yaml").write_text(SITE)
    place.folder.chmod(0o700)
    return place


def test_a_policy_is_checked_in_one_line(
    fedward: Command, tmp_path: Path, policy_text: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text)
    path.chmod(0o644)
    said = fedward("policy", "check", path)
    assert (said.code, said.err) == (0, "")
    assert "sound; studies: phantom" in said.out
    path.write_text(policy_text.replace("epsilon: 50.0", "epsilon: much"))
    said = fedward("policy", "check", path)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        f"Error: {path}: studies.phantom.epsilon='much': must be a number above 0"
    ]


def test_the_template_that_is_printed_passes_the_check(fedward: Command, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(fedward("policy", "template").out)
    path.chmod(0o644)
    assert fedward("policy", "check", path).code == 0


def test_a_bundle_is_inspected_approved_compared_and_revoked(
    fedward: Command, home: Any, fab: Callable[..., bytes]
) -> None:
    config = ("--config", home.folder / "site.yaml")
    path = home.folder / "new.fab"
    path.write_bytes(fab("app = 2\n", version="1.1.0"))
    shown = json.loads(fedward("inspect", path, "--json", *config).out)
    assert (shown["approved"], shown["compared_with"]) == (False, home.bundle)
    assert "+app = 2" in shown["differences"]
    said = fedward("inspect", path, *config)
    assert f"sha256 {shown['sha256']}\nnot approved\n" in said.out
    assert "-app = 1\n+app = 2" in said.out
    assert fedward("approve", shown["sha256"], *config).code == 0
    assert home.approvals.allow(shown["sha256"])
    assert "no differences" in fedward("inspect", path, *config).out
    assert fedward("revoke", shown["sha256"], *config).code == 0
    assert not home.approvals.allow(shown["sha256"])
    again = fedward("revoke", shown["sha256"], *config)
    assert (again.code, again.err) == (2, f"Error: {shown['sha256']}: is not approved\n")
    path.write_text("no bundle")
    assert fedward("inspect", path, *config).code == 2
    kinds = [record.kind for record in home.log().records]
    assert kinds == [Kind.opened, Kind.approved, Kind.approved, Kind.revoked]


def test_the_log_is_shown_as_lines_or_json_and_damage_is_told(fedward: Command, home: Any) -> None:
    path = home.folder / "audit.sqlite"
    said = fedward("log", path, "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert (said.code, [row["kind"] for row in rows]) == (0, ["audit_opened", "bundle_approved"])
    said = fedward("log", path, "--last", 1)
    assert said.out.splitlines()[0].startswith("seq=2")
    assert "sound: 2 rows" in said.out
    path.with_suffix(".head").unlink()
    said = fedward("log", path)
    assert said.code == 1
    assert said.err == "Error: the audit log's head is missing\n"
    assert fedward("log", home.folder / "none.sqlite").code == 2


def test_status_tells_what_is_used_and_left(
    fedward: Command, home: Any, request_of: Callable[..., Any]
) -> None:
    config = ("--config", home.folder / "site.yaml")
    with home.served() as site:
        spend = site.train(request_of()).spend
        site.train(request_of(2, noise_multiplier=0.5))
    home.audit.append(
        Kind.started, {"site": "hospital-1", "study": "phantom", "cohort": spend["cohort"]}
    )
    found = json.loads(fedward("status", "--json", *config).out)
    (cohort,) = found["cohorts"]
    assert cohort["epsilon"] == pytest.approx(spend["epsilon"])
    assert cohort["left"] == pytest.approx(50.0 - spend["epsilon"])
    assert (cohort["study"], cohort["cap"], cohort["num_open"]) == ("phantom", 50.0, 0)
    assert [one["decision"] for one in found["rounds"]] == ["trained", "refused"]
    assert found["rounds"][1]["reason"] == "weak_noise"
    said = fedward("status", "--last", 1, *config)
    assert (said.code, len(said.out.splitlines())) == (0, 2)
    assert "of 50 used" in said.out
    home.write_policy("broken: [")
    said = fedward("status", *config)
    assert said.code == 1
    assert "the policy has no cap for it" in said.out
    assert "policy.yaml: line" in said.err


def test_status_tells_when_the_consortiums_authority_ends(fedward: Command, home: Any) -> None:
    config = ("--config", home.folder / "site.yaml")
    assert json.loads(fedward("status", "--json", *config).out)["authority_ends"] is None
    authority = trustme.CA().cert_pem.bytes()
    (home.folder / "ca.crt").write_bytes(authority)
    ends = x509.load_pem_x509_certificate(authority).not_valid_after_utc
    found = json.loads(fedward("status", "--json", *config).out)["authority_ends"]
    assert datetime.fromisoformat(found) == ends
    assert f"authority, {ends:%Y-%m-%d}" in fedward("status", *config).out
    (home.folder / "ca.crt").write_text("nothing")
    said = fedward("status", *config)
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "ca.crt: no certificate (PEM)" in said.err


def test_state_that_others_may_look_into_is_refused(fedward: Command, home: Any) -> None:
    home.folder.chmod(0o755)
    said = fedward("serve", "--config", home.folder / "site.yaml")
    assert said.code == 2
    assert "chmod 700" in said.err


def test_no_command_but_serve_needs_torch() -> None:
    code = (
        "import sys\n"
        "from client.agent import command, status, approval, bundle, forwarder, gate_door\n"
        "from client.agent import runner\n"
        "from client.provisioning import command, setup, doctor\n"
        "from client import app\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_agent_that_would_mix_in_synthetic_images_does_not_start(
    fedward: Command, home: Any
) -> None:
    settings = "settings: [augment=mix, augment.pool=pool]"
    (home.folder / "site.yaml").write_text(SITE.replace("settings: []", settings))
    said = fedward("serve", "--config", home.folder / "site.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "Error: augment=mix: an agent cannot charge for synthetic images yet"
    ]


def test_status_before_the_agents_first_start(fedward: Command, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(SITE)
    ledgers = tmp_path / "ledgers"
    for make in (lambda: None, lambda: LedgerBook.at(ledgers)):  # as `site init` makes the key
        make()
        said = fedward("status", "--config", tmp_path / "site.yaml")
        assert (said.code, said.out) == (2, "")
        assert said.err == f"Error: {tmp_path}: no agent has run here yet\n"
    (ledgers / "old.sqlite").write_bytes(b"")  # somebody has been here, and the log is gone
    said = fedward("status", "--config", tmp_path / "site.yaml")
    assert "no agent has run here yet" not in said.err
    assert said.code != 0
