"""A consortium of two hospitals, every process that a deployment has, and who attacks it.

The processes are started from the units that ``init`` writes, under the users that they name, with
TLS by the consortium's own authority and nginx before the SuperLink.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file

from server.checkpoint import latest_checkpoint
from server.consortium import authority
from server.consortium.folder import Folder

pytestmark = pytest.mark.long

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")
AGENTS_PATIENT, BUNDLES_PATIENT = "PATIENT-4711-MEIER", "PATIENT-0815-SCHMIDT"
# What Python imports before anything else, for processes whose environment says so.
IN_AGENT = """\
import os
from client.site import Site

real = Site.train

def train(self, request):
    if os.path.exists({switch!r}):
        raise RuntimeError({patient!r})
    return real(self, request)

Site.train = train
"""
# The runner forgets modules of ours in each task's process, so this lies in one that stays.
IN_BUNDLE = """\
import os
import httpx

real = httpx.Client.stream

def stream(self, method, url, **more):
    if str(url).endswith("/v1/train") and os.path.exists({switch!r}):
        raise RuntimeError({patient!r})
    return real(self, method, url, **more)

httpx.Client.stream = stream
"""
PROJECT = """\
[project]
name = "fedward-north"
version = "6.6.6"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "north"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "asks:app"
clientapp = "answers:app"
[tool.flwr.app.config]
question = ""
"""
ASKS = """\
import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    question = RecordDict({"question": ConfigRecord(json.loads(context.run_config["question"]))})
    messages = [Message(question, dst_node_id=n, message_type="query") for n in nodes]
    said = [
        {"code": reply.error.code} if reply.has_error() else dict(reply.content["said"])
        for reply in grid.send_and_receive(messages, timeout=600)
    ]
    path = Path(os.environ["FEDWARD_RUNS"]) / "evil.json"
    path.with_suffix(".part").write_text(json.dumps(said))
    path.with_suffix(".part").rename(path)
"""
ANSWERS = """\
import os
import socket
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def connect(path):
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(path)


def attempt(call, path):
    try:
        call(path)
        return "done"
    except Exception as error:
        return type(error).__name__


@app.query()
def answer(message, context):
    asked = message.content["question"]
    said = {"uid": os.getuid()}
    said |= {path: attempt(connect, path) for path in asked["connect"]}
    said |= {path: attempt(os.listdir, path) for path in asked["list"]}
    said |= {path: attempt(lambda p: Path(p).read_bytes(), path) for path in asked["read"]}
    said |= {f"w {path}": attempt(lambda p: open(p, "a").close(), path) for path in asked["write"]}
    return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)
"""


@pytest.fixture(scope="module")
def town(consortium: Any) -> Any:
    """Two hospitals that are admitted, have approved the consortium's app, and run."""
    for name in ("st-mary", "st-luke"):
        consortium.join(name)
    app = consortium.root / "app"
    consortium.fedward("consortium", "app", consortium.folder, app)
    switch = (
        consortium.root / "switch"
    )  # while it is there, work breaks off with a name on its lips
    plants = {}
    for what, code, patient in (
        ("agent", IN_AGENT, AGENTS_PATIENT),
        ("bundle", IN_BUNDLE, BUNDLES_PATIENT),
    ):
        folder = consortium.root / f"in-{what}"
        folder.mkdir(mode=0o755)
        text = code.format(switch=str(switch), patient=patient)
        (folder / "sitecustomize.py").write_text(text)
        plants[what] = str(folder)
    mary, luke = consortium.sites.values()
    for site in (mary, luke):
        site.approve(app / "app.fab")
    mary.start_all(agent={"PYTHONPATH": plants["agent"]})
    luke.start_all(superexec={"PYTHONPATH": plants["bundle"]})
    return consortium


def test_three_rounds_and_both_sides_hold_the_same_spend(town: Any) -> None:
    town.prepare("first")
    kept = latest_checkpoint(town.folder / "runs" / "first" / "checkpoints")
    assert kept is not None
    first = kept.weights
    run = town.go(town.root / "app", "first")
    result = json.loads((run / "result.json").read_text())
    assert result["state"] == "completed", result
    assert result["patients"] == {"st-luke": 12, "st-mary": 12}
    assert [record["round"] for record in result["rounds"]] == [1, 2, 3]
    last = load_file(run / "weights.safetensors")
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in last.items()
    }
    assert all((first[name] != last[name]).any() for name in first)
    for name, site in town.sites.items():
        statements = [record["sites"][name]["statement"] for record in result["rounds"]]
        rows = site.log()
        trained = [r for r in rows if r["kind"] == "answered" and r.get("ledger")]
        assert [r["ledger"]["head"] for r in trained] == [s["head"] for s in statements]
        status = json.loads(site.fedward("status", "--json"))
        [cohort] = status["cohorts"]
        assert cohort["epsilon"] == pytest.approx(statements[-1]["epsilon"])
        assert cohort["cohort"] == statements[-1]["cohort"]
        [ledger] = [
            p for p in (site.home / "agent/state/ledgers").iterdir() if p.suffix == ".sqlite"
        ]
        verified = town.fedward(
            "ledger", "verify", ledger, "--public-key", statements[-1]["public_key"]
        )
        assert statements[-1]["head"][:16] in verified
        member = json.loads((town.folder / "hospitals" / f"{name}.json").read_text())
        assert statements[-1]["public_key"] == member["site_key"]
        askers = {row["uid"] for row in rows if row["kind"] == "asked"}
        assert askers == {site.users[1]}, "only the gate's user asks the agent"


def test_both_doctors_find_nothing_to_fail(town: Any) -> None:
    said = town.fedward("consortium", "doctor", town.folder, "--json")
    levels = {one["check"]: one["level"] for one in json.loads(said)["findings"]}
    assert {levels[name] for name in ("SuperLink", "hospitals", "nginx", "clock")} == {"ok"}
    for site in town.sites.values():
        said = town.fedward("site", "doctor", "--home", site.home, "--json")
        found = {one["check"]: one for one in json.loads(said)["findings"]}
        for name in ("agent's socket", "gate's socket", "bundles", "policy", "server", "clock"):
            assert found[name]["level"] == "ok", found[name]


def ask(town: Any, path: str) -> httpx.Response:
    """A question of somebody who has the join file and nothing else."""
    trusted = ssl.create_default_context(cafile=str(town.folder / "ca.crt"))
    request = httpx.Request("POST", f"https://localhost:{town.port}/", content=b"")
    # as it stands, without the client's own tidying up
    request.url = httpx.URL(f"https://localhost:{town.port}").copy_with(raw_path=path.encode())
    with httpx.Client(verify=trusted, timeout=60, trust_env=False) as client:
        return client.send(request)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "//v1/control/list-runs",
        "/v1/./control/list-runs",
        "/V1/CONTROL/list-runs",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_but_the_fleet_is_behind_nginx(town: Any, path: str) -> None:
    assert ask(town, path).status_code == 403


def test_the_fleet_answers_nobody_without_a_key(town: Any) -> None:
    assert ask(town, "/v1/fleet/register-node").status_code not in {200, 403, 404, 502}
    # a path that nginx would let through and the SuperLink might read otherwise
    assert ask(town, "/v1/control/list-runs/..%2f..%2ffleet/register-node").status_code != 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_nginx_speaks_no_old_tls(town: Any) -> None:
    trusted = ssl.create_default_context(cafile=str(town.folder / "ca.crt"))
    # OpenSSL itself has to be told to offer what nginx is to refuse
    trusted.set_ciphers("ALL:@SECLEVEL=0")
    trusted.minimum_version = ssl.TLSVersion.TLSv1
    trusted.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        httpx.Client(verify=trusted, timeout=60, trust_env=False) as client,
        pytest.raises(httpx.ConnectError, match=r"(?i)protocol|alert"),
    ):
        client.post(f"https://localhost:{town.port}/v1/fleet/register-node")


def test_a_strangers_key_is_refused(town: Any) -> None:
    stranger = town.join("st-nobody", admitted=False)
    del town.sites["st-nobody"]
    stranger.start("supernode")
    town.processes.until(lambda: has_ended(town, "st-nobody-supernode"), ended=True)
    assert town.processes.wait("st-nobody-supernode") != 0
    said = (town.processes.logs / "st-nobody-supernode.log").read_text()
    assert re.search("2004|not registered|authenticat", said), said
    listed = json.loads(town.fedward("consortium", "members", town.folder, "--json"))
    states = {one["hospital"]: one["state"] for one in listed}
    assert states == {"st-mary": "admitted", "st-luke": "admitted", "st-nobody": "invited"}


def has_ended(town: Any, name: str) -> bool:
    return town.processes.running[name].poll() is not None


def test_an_expired_server_certificate_is_refused(town: Any) -> None:
    folder, site = Folder(path=town.folder), town.sites["st-mary"]
    kept = town.root / "kept"
    shutil.copytree(folder.path / "tls", kept)
    owner = folder.server_key.stat()
    past = datetime.now(UTC) - timedelta(days=40)
    expired = authority.issue(folder.authority(), ["localhost"], now=past, days=30)
    # a SuperNode that sees it neither ends nor recovers (docs/threat-model.md)
    site.processes.stop("st-mary-supernode", "st-luke-supernode")
    try:
        folder.server_certificate.write_bytes(expired.certificate)
        folder.server_key.write_bytes(expired.key)
        reload_nginx(town)
        said = town.fedward("site", "doctor", "--home", site.home, "--no-data", code=1)
        assert "its certificate has ended" in said
        site.start("supernode")
        log = town.processes.logs / "st-mary-supernode.log"
        before = log.read_text().count("certificate")
        town.processes.until(
            lambda: (
                log.read_text().count("certificate") > before
                or has_ended(town, "st-mary-supernode")
            ),
            ended=True,
        )
        assert "expired" in log.read_text()
    finally:
        site.processes.stop("st-mary-supernode")
        for name in ("server.crt", "server.key"):
            shutil.copyfile(kept / name, folder.path / "tls" / name)
        os.chown(folder.server_key, owner.st_uid, owner.st_gid)
        reload_nginx(town)
    said = town.fedward("site", "doctor", "--home", site.home, "--no-data")
    assert "the authority vouches for it" in said
    for one in town.sites.values():
        town.start_supernode_again(one)


def reload_nginx(town: Any) -> None:
    """As the unit does; until what it shows is what lies in its folder."""
    town.processes.running["nginx"].send_signal(signal.SIGHUP)
    wanted = (town.folder / "tls" / "server.crt").read_text()

    def shown() -> bool:
        return ssl.get_server_certificate(("localhost", town.port)) == wanted

    town.processes.until(shown)


@needs_root
def test_code_that_is_approved_and_evil_opens_nothing(town: Any) -> None:
    app, mary, luke = town.root / "evil", *town.sites.values()
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "asks.py").write_text(ASKS)
    (app / "answers.py").write_text(ANSWERS)
    data = mary.home / "agent" / "data"
    data.mkdir(mode=0o700)
    (data / "image.dcm").write_bytes(b"x")
    for path in (data, data / "image.dcm"):
        os.chown(path, mary.agent, mary.agent)
    bundle = town.build(app)
    mary.approve(bundle)  # the other hospital does not
    [ledger] = (mary.home / "agent/state/ledgers").glob("*.sqlite")
    question = {
        "connect": [mary.home / "agent/agent.sock", luke.home / "agent/agent.sock"],
        "list": [data, mary.home / "agent", mary.home / "agent/state"],
        "read": [
            *(data / "image.dcm", ledger, mary.home / "agent/state/ledgers/site.key"),
            *(mary.home / "gate/node.key", mary.home / "gate/superexec.secret"),
            *(mary.home / "agent/approvals.json", mary.home / "proxy.env"),
            *(town.folder / "tls/server.key", town.folder / "ca/ca.key"),
        ],
        "write": [
            mary.home / name for name in ("policy.yaml", "site.yaml", "gate.yaml", "start/agent")
        ],
    }
    plain = {name: list(map(str, paths)) for name, paths in question.items()}
    town.flwr("run", str(app), "consortium", "--run-config", f"question='{json.dumps(plain)}'")
    said_file = town.folder / "runs" / "evil.json"
    town.processes.until(said_file.exists)
    said = sorted(json.loads(said_file.read_text()), key=len)
    assert said[0] == {"code": 901}, "the hospital that did not approve it has not run it"
    assert said[1].pop("uid") == mary.users[2]
    assert len(said[1]) == sum(map(len, plain.values()))
    assert set(said[1].values()) == {"PermissionError"}, said[1]


def test_a_bundle_that_nobody_approved_ends_without_a_round(town: Any) -> None:
    app = town.root / "other-app"
    shutil.copytree(town.root / "app", app)
    project = app / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "', 'version = "7.'))
    run = town.run(app, "unapproved", "federation.wait_seconds=15")
    result = json.loads((run / "result.json").read_text())
    assert (result["state"], result["rounds"]) == ("failed", [])
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    strangers = [one for one in events if one["event"] == "stranger"]
    assert len(strangers) == 2
    assert {one["problem"] for one in strangers} == {"has not approved the code of this run"}


def test_a_patients_name_in_an_exception_never_reaches_the_server(town: Any) -> None:
    switch = town.root / "switch"
    switch.touch()
    try:
        run = town.run(town.root / "app", "planted", "federation.retries=0")
    finally:
        switch.unlink()
    result = json.loads((run / "result.json").read_text())
    assert (result["state"], result["rounds"]) == ("failed", [])
    logs = town.processes.logs
    # both were raised where they were planted, and are in the hospitals' own logs
    assert AGENTS_PATIENT in (logs / "st-mary-agent.log").read_text()
    assert BUNDLES_PATIENT in (logs / "st-luke-superexec.log").read_text()
    servers = [*town.folder.rglob("*"), *(logs / f"{name}.log" for name in town.units)]
    looked_at = 0
    for path in servers:
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            looked_at += 1
            for patient in (AGENTS_PATIENT, BUNDLES_PATIENT):
                assert patient.encode() not in content, path
    assert looked_at > 20
    assert b"internal_error" in (run / "events.jsonl").read_bytes()


def test_keys_and_certificates_are_changed_and_the_next_run_completes(town: Any) -> None:
    mary, luke = town.sites.values()
    town.fedward("consortium", "revoke", town.folder, "st-luke")
    town.processes.until(lambda: has_ended(town, "st-luke-supernode"), ended=True)
    town.processes.wait("st-luke-supernode")
    town.fedward("site", "rotate-key", "--home", luke.home)
    town.admit(luke, "--replace")
    before = (town.folder / "tls" / "server.crt").read_text()
    town.fedward("consortium", "rotate", town.folder, "--host", "localhost")
    assert (town.folder / "tls" / "server.crt").read_text() != before
    town.processes.stop("superlink")
    town.start_unit("superlink")
    reload_nginx(town)
    town.start_supernode_again(luke)
    if has_ended(town, "st-mary-supernode"):  # its unit would have brought it back
        town.start_supernode_again(mary)
    run = town.run(town.root / "app", "second", "federation.rounds=1")
    assert json.loads((run / "result.json").read_text())["state"] == "completed"
