"""Flower's own SuperLink, SuperNode and SuperExec on loopback, with the gate and an agent."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk

SETTINGS = [
    "model.architecture=test_vit",
    "finetune=head",
    "data.image_size=32",
    "data.phantom.size=32",
    "data.phantom.num_train_per_site=12",
    "data.phantom.num_val=8",
    "data.phantom.num_test=8",
    "federation.num_sites=2",
]
POLICY = """\
schema: fedward.policy/1
studies:
  phantom: {epsilon: 2.5, delta: 1e-3, accountant: rdp}
smallest_noise_multiplier: 1.0
smallest_expected_batch: 3
largest_sampling_rate: 0.5
largest_steps: 4
models: [test_vit]
"""
PROJECT = """\
[project]
name = "fedward-app"
version = "{version}"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "consortium"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "asks:app"
clientapp = "answers:app"
[tool.flwr.app.config]
said = ""
question = ""
"""
SERVER = """\
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    content = RecordDict({"question": ConfigRecord(json.loads(context.run_config["question"]))})
    message = Message(content, dst_node_id=nodes[0], message_type="query")
    [reply] = grid.send_and_receive([message], timeout=120)
    if reply.has_error():
        said = {"code": reply.error.code, "reason": reply.error.reason}
    else:
        said = dict(reply.content["said"])
    path = Path(context.run_config["said"])
    path.with_suffix(".part").write_text(json.dumps(said))
    path.with_suffix(".part").rename(path)
"""
# An approved bundle that asks as it should, and then tries what it should not.
APPROVED = """\
import socket
from dataclasses import replace
from pathlib import Path

from client.agent.forwarder import AgentSite
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message, context):
    asked = message.content["question"]
    site = AgentSite.of(context.node_config)
    said = {"patients": site.describe().num_patients, "bundle": site.bundle}

    def attempt(name, call):
        try:
            call()
            said[name] = "done"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"

    def connect():
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(asked["agent"])

    attempt("another bundle", replace(site, bundle=asked["other"]).describe)
    attempt("no ticket", replace(site, ticket=None).describe)
    attempt("agent", connect)
    attempt("secret", Path(asked["secret"]).read_bytes)
    attempt("state", lambda: list(Path(asked["state"]).iterdir()))
    return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)
"""
UNAPPROVED = """\
from pathlib import Path

from flwr.clientapp import ClientApp

Path({marker!r}).write_text("code of an unapproved bundle ran")
app = ClientApp()
"""
FEDWARD = [sys.executable, "-P", "-c", "from simulations.cli import main; main()", "site"]


def can_be_others() -> bool:
    """Whether processes of other users can run here: by root, of a Python that they can read."""
    if os.getuid() != 0:
        return False
    try:
        words = [sys.executable, "-c", "import client.agent.gate_door"]
        done = subprocess.run(words, user="nobody", group="nogroup", extra_groups=[], check=False)
    except PermissionError:
        return False
    return done.returncode == 0


SEPARATE = can_be_others()
AGENT, GATE, BUNDLE = ("daemon", "games", "nobody") if SEPARATE else (getpass.getuser(),) * 3


def flower(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def free_ports(count: int) -> list[int]:
    doors = [socket.socket() for _ in range(count)]
    for door in doors:
        door.bind(("127.0.0.1", 0))
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(kw_only=True)
class Hospital:
    """A folder for each user, and the processes that run in them."""

    root: Path
    running: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.chmod(0o755)
        for name, user in (("agent", AGENT), ("gate", GATE), ("bundle", BUNDLE)):
            self.folder(name).mkdir(mode=0o755)
            shutil.chown(self.folder(name), user)
        self.folder("server").mkdir()

    def folder(self, name: str) -> Path:
        return self.root / name

    def _as(self, folder: str) -> dict[str, Any]:
        environment = os.environ | {
            "FLWR_HOME": str(self.folder(folder) / "flwr"),
            "HOME": str(self.folder(folder)),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        how: dict[str, Any] = {"cwd": self.folder(folder), "env": environment}
        if SEPARATE and folder != "server":
            user, door = {"agent": (AGENT, None), "gate": (GATE, AGENT), "bundle": (BUNDLE, GATE)}[
                folder
            ]
            # the group of the next door inwards, and no other
            extra = [] if door is None else [pwd.getpwnam(door).pw_gid]
            how |= {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": extra}
        return how

    def start(self, name: str, folder: str, *words: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                words, stdout=log, stderr=log, start_new_session=True, **self._as(folder)
            )

    def run(self, folder: str, *words: str) -> str:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=120, check=False, **self._as(folder)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            for name, process in self.running.items():
                assert process.poll() is None, f"{name} ended\n{self.said(name)}"
            assert time.monotonic() < deadline, "\n".join(map(self.said, self.running))
            time.sleep(0.2)

    def said(self, name: str) -> str:
        return f"--- {name}\n" + (self.root / f"{name}.log").read_text()

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def write_app(self, name: str, version: str, code: str) -> bytes:
        """Flower's folder of an app at the server; gives the bundle that it sends."""
        app = self.folder("server") / name
        app.mkdir()
        (app / "pyproject.toml").write_text(PROJECT.format(version=version))
        (app / "asks.py").write_text(SERVER)
        (app / "answers.py").write_text(code)
        with warnings.catch_warnings():  # Flower asks pathspec for what it will drop
            warnings.simplefilter("ignore", DeprecationWarning)
            return build_fab_from_disk(app)

    def approve(self, bundle: bytes) -> str:
        (self.folder("agent") / "app.fab").write_bytes(bundle)
        shown = json.loads(self.run("agent", *FEDWARD, "inspect", "app.fab", "--json"))
        self.run("agent", *FEDWARD, "approve", shown["sha256"])
        return shown["sha256"]

    def ask(self, app: str, **question: str) -> dict[str, Any]:
        """What comes of a run of ``app``: the reply of its one message, as its server saw it."""
        said = self.folder("server") / f"{app}.json"
        config = f"said={json.dumps(str(said))} question='{json.dumps(question)}'"
        self.run("server", flower("flwr"), "run", app, "consortium", "--run-config", config)
        self.until(said.exists)
        return json.loads(said.read_text())

    def audit(self) -> list[dict[str, Any]]:
        rows = self.run("agent", *FEDWARD, "log", "state/audit.sqlite", "--json")
        return [json.loads(line) for line in rows.splitlines()]


@pytest.fixture
def hospital() -> Iterator[Hospital]:
    # a short path: a Unix socket's has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="fw-") as name:
        found = Hospital(root=Path(name))
        try:
            yield found
        finally:
            found.stop()


def configure(place: Hospital) -> str:
    """The agent's files; gives the site's public key."""
    agent = place.folder("agent")
    (agent / "site.yaml").write_text(
        "schema: fedward.site/1\nname: hospital-a\nsocket: agent.sock\npolicy: policy.yaml\n"
        f"state: state\nsettings: {json.dumps(SETTINGS)}\nrecords_of: hospital-1\n"
        f"gate: {GATE}\npublished: approvals.json\n"
    )
    (agent / "policy.yaml").write_text(POLICY)
    (agent / "policy.yaml").chmod(0o644)
    return place.run("agent", *FEDWARD, "key")


def start_all(place: Hospital, public_key: str) -> None:
    link, node, gate = free_ports(3)
    secret = place.folder("gate") / "secret"
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o600)
    shutil.chown(secret, GATE)
    (place.folder("gate") / "gate.yaml").write_text(
        f"schema: fedward.gate/1\nlisten: 127.0.0.1:{gate}\nsupernode: 127.0.0.1:{node}\n"
        "secret: secret\nsocket: gate.sock\nagent: ../agent/agent.sock\n"
        f"approvals: ../agent/approvals.json\npublic_key: '{public_key}'\n"
    )
    home = place.folder("server") / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "consortium"\n[superlink.consortium]\n'
        f'address = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    place.start("agent", "agent", *FEDWARD, "serve")
    place.start(
        *("superlink", "server", flower("flower-superlink"), "--insecure"),
        *("--host", "127.0.0.1", "--port", str(link), "--isolation", "subprocess"),
    )
    place.until(lambda: is_open(link))
    place.until((place.folder("agent") / "agent.sock").exists)
    place.start("gate", "gate", *FEDWARD, "gate")
    place.start(
        *("supernode", "gate", flower("flower-supernode"), "--insecure"),
        *("--superlink", f"127.0.0.1:{link}", "--host", "127.0.0.1", "--port", str(node)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
    )
    place.until(lambda: is_open(gate) and is_open(node))
    place.start(
        *("superexec", "bundle", flower("flower-superexec"), "--insecure"),
        *("--runtime-api-address", f"127.0.0.1:{gate}"),
    )


def test_an_unapproved_bundle_is_never_unpacked_and_an_approved_one_cannot_borrow_a_name(
    hospital: Hospital,
) -> None:
    marker = hospital.folder("bundle") / "ran"
    public_key = configure(hospital)
    good = hospital.write_app("good", "1.0.0", APPROVED)
    other = hospital.approve(hospital.write_app("other", "1.1.0", APPROVED))
    sha256 = hospital.approve(good)
    hospital.write_app("bad", "2.0.0", UNAPPROVED.format(marker=str(marker)))
    start_all(hospital, public_key)

    assert hospital.ask("bad") == {"code": 901, "reason": "unapproved_code"}
    assert not marker.exists()
    unpacked = [path.name for path in hospital.folder("bundle").rglob("consortium.fedward-app*")]
    assert unpacked == []

    said = hospital.ask(
        "good",
        other=other,
        agent=str(hospital.folder("agent") / "agent.sock"),
        secret=str(hospital.folder("gate") / "secret"),
        state=str(hospital.folder("agent") / "state"),
    )
    assert (said["patients"], said["bundle"]) == (12, sha256)
    assert "HTTP 403 unapproved_code" in said["another bundle"]
    assert "HTTP 401" in said["no ticket"]
    if SEPARATE:
        for name in ("agent", "secret", "state"):
            assert said[name].startswith("PermissionError"), said
    rows = hospital.audit()
    asked = [row for row in rows if row["kind"] == "asked"]
    answered = [row for row in rows if row["kind"] == "answered"]
    assert [row["bundle"] for row in asked] == [sha256, other]
    assert {row["uid"] for row in asked} == {pwd.getpwnam(GATE).pw_uid}
    assert [row["decision"] for row in answered] == ["described", "refused"]
