"""Four hospitals that share their noise, every process of a deployment, and agents that are killed.

Each round has five questions, and each question is a new process at each hospital, so this takes
minutes.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from server.checkpoint import latest_checkpoint
from simulations.loopback.consortium import Agreed, Consortium
from simulations.loopback.processes import Processes, Python, is_answered

pytestmark = pytest.mark.long

NAMES = ("st-mary", "st-luke", "st-anne", "st-john")
AGREED = Agreed(
    settings=(
        "model.architecture=test_vit",
        "finetune=head",
        "data.image_size=32",
        "data.phantom.size=32",
        "data.phantom.num_train_per_site=12",
        "data.phantom.num_val=8",
        "data.phantom.num_test=8",
        "federation.num_sites=4",
    ),
    run=(
        "federation.trust=secure_aggregation",
        "federation.rounds=1",
        "federation.steps_per_round=1",
        "federation.max_dropouts=1",
        "federation.max_colluders=1",
        "federation.wait_seconds=120",
        "federation.timeout_seconds=300",
        "training.optimizer=sgd",
        "privacy.sampling_rate=0.5",
        "privacy.noise_multiplier=2.0",
        "privacy.delta=1e-3",
        "privacy.accountant=rdp",
        "privacy.images_per_patient=1",
    ),
    policy="""\
schema: fedward.policy/1
studies:
  phantom: {epsilon: 8.0, epsilon_alone: 30.0, delta: 1e-3, accountant: rdp}
smallest_noise_multiplier: 1.0
smallest_expected_batch: 3
largest_sampling_rate: 0.5
largest_steps: 4
models: [test_vit]
trust: {accepted: [secure_aggregation], least_sites: 4, least_colluders: 1}
""",
)
# What Python imports before anything else, where the environment says so: the agent is killed when
# it is asked to sign who is in the sum: its vector has gone, and masks are not taken off yet.
IN_AGENT = """\
import os
import signal

from client.secure_aggregation.secure_site import SecureSite
from common.secure_aggregation.conversation import Question, Step

real = SecureSite.answer

def answer(self, data, request=None):
    if os.path.exists({switch!r}) and Question.from_bytes(data).step is Step.agreement:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, data, request)

SecureSite.answer = answer
"""


@pytest.fixture(scope="module")
def town(python: Python) -> Iterator[Consortium]:
    """Four hospitals that accept shared noise only, have pinned one roster, and run."""
    # a short path: a Unix socket's has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="fw-") as folder:
        root = Path(folder)
        separate = os.getuid() == 0
        processes = Processes(logs=root / "logs", python=python, separate=separate)
        made = Consortium.found(root, AGREED, processes)
        try:
            made.start()
            for name in NAMES:
                made.join(name)
            pin_roster(made)
            open_hospitals(made)
            yield made
        finally:
            made.processes.stop()


def pin_roster(town: Consortium) -> None:
    """Every hospital pins the keys of all, under a fingerprint that they compare."""
    path = town.root / "roster.json"
    said = town.fedward("consortium", "roster", town.folder, "--out", path)
    [line] = [one for one in said.splitlines() if one.startswith("roster ")]
    for site in town.sites.values():
        town.fedward(
            *("site", "roster", "--home", site.home, "--pin", path),
            *("--fingerprint", line.split()[1]),
        )


def open_hospitals(town: Consortium) -> None:
    """Starts all of them; the first one's agent has a fault planted in it."""
    app = town.root / "app"
    town.fedward("consortium", "app", town.folder, app)
    plant = town.root / "in-agent"
    plant.mkdir(mode=0o755)
    text = IN_AGENT.format(switch=str(town.root / "switch"))
    (plant / "sitecustomize.py").write_text(text)
    for name, site in town.sites.items():
        site.approve(app / "app.fab")
        planted = {"agent": {"PYTHONPATH": str(plant)}} if name == "st-mary" else {}
        site.start_all(**planted)


def begin(town: Any, name: str, *overrides: str) -> Path:
    """Starts a run; gives its folder."""
    town.prepare(name, *overrides)
    town.fedward("consortium", "run", town.folder, town.root / "app", name)
    return town.folder / "runs" / name


def kill_mary(town: Any) -> None:
    """Waits until her agent is gone, of a signal that no process can hear."""
    agent = town.processes.running["st-mary-agent"]
    town.processes.until(lambda: agent.poll() is not None, ended=True)
    assert town.processes.wait("st-mary-agent") == -signal.SIGKILL
    steps = [row["step"] for row in town.sites["st-mary"].log() if row.get("what") == "secure"]
    assert steps[-2:] == ["masked", "agreement"]


def result_of(town: Any, run: Path) -> dict[str, Any]:
    town.processes.until((run / "result.json").exists, ended=True)
    return json.loads((run / "result.json").read_text())


def assert_both_sides_hold_both_figures(town: Any, result: dict[str, Any]) -> dict[str, Any]:
    """The server's records of the last round, the ledgers and the audit logs; gives statements."""
    records = result["rounds"][-1]["sites"]
    for name, site in town.sites.items():
        statement = records[name]["statement"]
        assert records[name]["status"] == "trained", records[name]
        assert records[name]["epsilon"] == statement["epsilon"]
        (cohort,) = json.loads(site.fedward("status", "--json"))["cohorts"]
        assert cohort["problems"] == []
        assert cohort["epsilon"] == statement["epsilon"]
        assert cohort["epsilon_alone"] == statement["epsilon_alone"]["epsilon"]
        assert 0 < cohort["epsilon"] < cohort["epsilon_alone"]
        assert (cohort["cap"], cohort["cap_alone"]) == (8.0, 30.0)
        [ledger] = (site.home / "agent/state/ledgers").glob("*.sqlite")
        words = ("ledger", "verify", ledger, "--public-key", statement["public_key"])
        verified = site.processes.ask("fedward", *words).expect(0)
        assert statement["head"][:16] in verified
        trained = [row for row in site.log() if row.get("decision") == "trained"]
        assert trained[-1]["ledger"]["head"] == statement["head"]
    return {name: record["statement"] for name, record in records.items()}


def test_the_doctor_finds_the_roster(town: Any) -> None:
    for site in town.sites.values():
        words = ("site", "doctor", "--home", site.home, "--no-data", "--json")
        said = town.processes.ask("fedward", *words).out
        found = {one["check"]: one for one in json.loads(said)["findings"]}
        assert found["roster"]["level"] == "ok", found["roster"]


def test_one_is_killed_between_masking_and_unmasking(town: Any) -> None:
    (town.root / "switch").touch()
    town.prepare("first", "federation.retries=1", "federation.retry_seconds=1")
    kept = latest_checkpoint(town.folder / "runs" / "first" / "checkpoints")
    assert kept is not None
    town.fedward("consortium", "run", town.folder, town.root / "app", "first")
    kill_mary(town)
    result = result_of(town, town.folder / "runs" / "first")
    (town.root / "switch").unlink()
    assert result["state"] == "completed", result
    assert result["trust"] == "secure_aggregation"
    for site in town.sites.values():
        assert {row["roster"] for row in site.log() if "roster" in row} == {result["roster"]}
    (record,) = result["rounds"]
    assert record["aggregated"]
    last = load_file(town.folder / "runs" / "first" / "weights.safetensors")
    assert all((kept.weights[name] != last[name]).any() for name in kept.weights)
    statements = assert_both_sides_hold_both_figures(town, result)
    assert len({one["epsilon"] for one in statements.values()}) == 1
    # who died has signed nothing and given no share away, and was charged all the same
    rows = town.sites["st-mary"].log()
    assert not [row for row in rows if row.get("step") == "reveal"]
    for name in NAMES[1:]:
        steps = [row["step"] for row in town.sites[name].log() if row.get("what") == "secure"]
        assert steps == ["keys", "shares", "masked", "agreement", "reveal"]


def test_an_agent_that_comes_back_in_mid_round_is_part_of_it_and_charged_once(town: Any) -> None:
    mary = town.sites["st-mary"]
    before = json.loads(mary.fedward("status", "--json"))["cohorts"][0]
    mary.start("agent", {"PYTHONPATH": str(town.root / "in-agent")})
    town.processes.until(lambda: is_answered(mary.home / "agent" / "agent.sock"))
    (town.root / "switch").touch()
    run = begin(town, "second", "federation.retries=60", "federation.retry_seconds=2")
    kill_mary(town)
    (town.root / "switch").unlink()
    mary.start("agent")  # as Restart=always does
    result = result_of(town, run)
    assert result["state"] == "completed", result
    assert_both_sides_hold_both_figures(town, result)
    assert result["rounds"][0]["sites"]["st-mary"]["attempts"] > 1
    rows = mary.log()
    revealed = [row for row in rows if row.get("step") == "reveal"]
    assert len(revealed) == 1, "it signed, and gave its shares, after it was killed"
    trained = [row for row in rows if row.get("decision") == "trained"]
    assert len(trained) == 2
    after = json.loads(mary.fedward("status", "--json"))["cohorts"][0]
    others = json.loads(town.sites["st-luke"].fedward("status", "--json"))["cohorts"][0]
    for figure in ("epsilon", "epsilon_alone"):
        assert before[figure] < after[figure] == others[figure]


def test_a_server_that_counts_on_everybodys_honesty_gets_nothing(town: Any) -> None:
    before = [site.fedward("status", "--json", "--last", 1) for site in town.sites.values()]
    run = begin(town, "third", "federation.max_colluders=0")
    result = result_of(town, run)
    assert result["state"] == "failed"
    (record,) = result["rounds"]
    assert {one["reason"] for one in record["sites"].values()} == {"weak_trust"}
    after = [site.fedward("status", "--json", "--last", 1) for site in town.sites.values()]
    for one, other in zip(before, after, strict=True):
        assert json.loads(one)["cohorts"] == json.loads(other)["cohorts"], "nothing was charged"
