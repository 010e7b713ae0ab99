"""Fault drills: what happens to a run, its end state, and to what patients were charged.

Hospitals that misbehave are built here around real ones, through the seams that everyone uses. The
table of drills stands in docs/server.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import build as build_client
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import (
    AccountantName,
    Config,
    FederationConfig,
    FinetuneConfig,
    FinetuneMode,
    ModelConfig,
    PrivacyConfig,
    StrategyConfig,
    StrategyName,
    TrainingConfig,
    Unit,
)
from common.errors import RunFailed
from common.messages import TrainReply, TrainRequest, Weights
from common.models import weights_sha256
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.cohort import patient_hashes
from common.seeds import SimulatedSeeds
from server.checkpoint import Checkpoint, latest_checkpoint
from server.end_state import EndState
from server.rounds import Outcome, Start, run
from simulations.ledgers.reading import read as read_ledger

NAMES = ("hospital-1", "hospital-2", "hospital-3")
MODEL = SiteModel(
    config=ModelConfig(architecture="test_vit", patch_size=16),
    finetune=FinetuneConfig(mode=FinetuneMode.head),
    image_size=32,
    num_classes=2,
    seed=5,
)
Misbehaviour = Callable[[Site, TrainRequest], TrainReply]


@pytest.fixture
def server_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower stamps every message with the identity of the process that makes it."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Loopback(Grid):
    """ClientApps in this process; whoever returns nothing hangs."""

    def __init__(self, apps: dict[int, Callable[[Message], Message | None]]) -> None:
        self.apps = apps
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *arguments: Any, **more: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers: list[str] = []
        for message in messages:
            number = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            numbers.append(number)
            reply = self.apps[message.metadata.dst_node_id](message)
            if reply is not None:
                self._replies[number] = reply
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(n) for n in sorted(set(message_ids) & set(self._replies))]


def setup_of(name: str, folder: Path) -> SiteSetup:
    rng = np.random.default_rng([ord(letter) for letter in name])
    cohort = Cohort(
        images=rng.random((10, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 10),
        patients=np.repeat(np.arange(6), [1, 2, 3, 1, 2, 1]),
        num_patients=6,
        patient_ids=tuple(f"{name} {number}" for number in range(6)),
    )
    return SiteSetup(
        name=name,
        cohort=cohort,
        patient_hashes=patient_hashes(cohort.patient_ids, bytes(32)),
        ledger=folder / name / "ledger.sqlite",
        replies=folder / name / "replies",
        budget=Budget(epsilon=500.0, delta=1e-3, accountant="rdp"),
        model=MODEL,
        seeds=SimulatedSeeds(run_seed=1, site=name),
    )


class Misbehaving:
    """A hospital around a real one; what the real one does, it does."""

    def __init__(self, site: Site, misbehave: Misbehaviour) -> None:
        self._site = site
        self._misbehave = misbehave

    def describe(self) -> Any:
        return self._site.describe()

    def train(self, request: TrainRequest) -> TrainReply:
        return self._misbehave(self._site, request)


@dataclass
class Drill:
    """Three real hospitals, of which one or all misbehave, and a server."""

    folder: Path
    faults: dict[str, Misbehaviour] = field(default_factory=dict[str, Misbehaviour])
    federation: dict[str, Any] = field(default_factory=dict[str, Any])
    strategy: StrategyName = StrategyName.fedavg
    optimizer: str = "sgd"
    observe: Callable[[dict[str, Any]], None] = lambda event: None

    def app(self, name: str) -> Callable[[Message], Message | None]:
        site: Any = Site(setup_of(name, self.folder))
        if name in self.faults:
            site = Misbehaving(site, self.faults[name])
        app = build_client(lambda context: site)
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        return lambda message: app(message, context)

    def grid(self) -> Loopback:
        return Loopback({number: self.app(name) for number, name in enumerate(NAMES, 11)})

    def hold(self, grid: Grid | None = None) -> Outcome:
        """Begin, or go on from the last checkpoint."""
        model = MODEL.build()
        config = Config(
            privacy=PrivacyConfig(
                noise_multiplier=2.0,
                sampling_rate=0.5,
                delta=1e-3,
                accountant=AccountantName.rdp,
                images_per_patient=2,
            ),
            training=TrainingConfig(optimizer=self.optimizer, learning_rate=0.01),
            strategy=StrategyConfig(name=self.strategy),
            federation=FederationConfig(
                **{
                    "rounds": 4,
                    "steps_per_round": 2,
                    "wait_seconds": 5.0,
                    "timeout_seconds": 60.0,
                    "retries": 1,
                    "retry_seconds": 0.01,
                    **self.federation,
                }
            ),
        )
        begin = Checkpoint(run_id="drill", round=0, weights=models.trainable_weights(model))
        start = Start(
            config=config,
            sites=NAMES,
            checkpoint=latest_checkpoint(self.folder / "checkpoints") or begin,
            frozen_sha256=models.frozen_sha256(model),
            checkpoints=self.folder / "checkpoints",
            evaluate=lambda weights: {},
            observe=self.observe,
        )
        return run(grid or self.grid(), start)

    def charges(self, name: str) -> list[tuple[str, State]]:
        """Every request in the ledger of a hospital."""
        with setup_of(name, self.folder).open_ledger(Unit.patient) as ledger:
            return [(entry.request_id, entry.state) for entry in ledger.entries()]

    def assert_nobody_charged_twice(self, rounds: int = 4) -> None:
        each = [(f"drill/{number}/train", State.committed) for number in range(1, rounds + 1)]
        for name in NAMES:
            assert self.charges(name) == each, name


def column(outcome: Outcome, site: str, key: str) -> list[Any]:
    return [record["sites"][site][key] for record in outcome.checkpoint.history]


def final(outcome: Outcome) -> str:
    return weights_sha256(outcome.checkpoint.weights)


def in_round(number: int, change: Callable[[TrainReply], TrainReply]) -> Misbehaviour:
    def misbehave(site: Site, request: TrainRequest) -> TrainReply:
        reply = site.train(request)
        return change(reply) if request.round == number else reply

    return misbehave


def with_weights(change: Callable[[Weights], Weights]) -> Callable[[TrainReply], TrainReply]:
    def changed(reply: TrainReply) -> TrainReply:
        assert reply.weights is not None
        return replace(reply, weights=change(reply.weights))

    return changed


BAD_UPDATES: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "NaN": (lambda w: {n: v * np.float32(np.nan) for n, v in w.items()}, "not_finite"),
    "wrong shapes": (lambda w: {n: v.ravel()[:-1] for n, v in w.items()}, "wrong_shape"),
    "1000 times": (lambda w: {n: v + np.float32(10.0) for n, v in w.items()}, "too_large"),
}


@pytest.mark.usefixtures("server_identity")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", BAD_UPDATES)
def test_a_bad_update_is_quarantined_and_the_run_goes_on(
    kind: str, optimizer: str, tmp_path: Path
) -> None:
    change, reason = BAD_UPDATES[kind]
    fault = in_round(2, with_weights(change))
    drill = Drill(tmp_path, {"hospital-2": fault}, optimizer=optimizer)
    outcome = drill.hold()
    assert outcome.state is EndState.completed_with_missing_sites
    assert outcome.state.exit_code == 3
    assert column(outcome, "hospital-2", "status") == ["trained", "failed", "trained", "trained"]
    assert column(outcome, "hospital-2", "reason")[1] == reason
    assert column(outcome, "hospital-1", "reason") == [None] * 4
    assert all(np.isfinite(value).all() for value in outcome.checkpoint.weights.values())
    # What its patients were charged is known all the same.
    spent = column(outcome, "hospital-2", "epsilon")
    assert spent == sorted(set(spent))
    drill.assert_nobody_charged_twice()


@pytest.mark.usefixtures("server_identity")
def test_a_ledger_that_goes_back_is_found(tmp_path: Path) -> None:
    """An old copy of the ledger and its head is put back after round 2."""
    folder, copy = tmp_path / "run", tmp_path / "copy"

    def put_back(site: Site, request: TrainRequest) -> TrainReply:
        if request.round == 3:
            shutil.rmtree(folder / "hospital-3")
            shutil.copytree(copy, folder / "hospital-3")
        reply = site.train(request)
        if request.round == 1:
            shutil.copytree(folder / "hospital-3", copy)
        return reply

    outcome = Drill(folder, {"hospital-3": put_back}).hold()
    assert outcome.state is EndState.completed_with_missing_sites
    assert column(outcome, "hospital-3", "reason")[:3] == [None, None, "bad_statement"]
    problems = column(outcome, "hospital-3", "problems")[2]
    assert problems
    spent = column(outcome, "hospital-3", "epsilon")
    assert spent == sorted(spent)


@pytest.mark.usefixtures("server_identity")
@pytest.mark.parametrize("after_training", [False, True])
def test_all_sites_failing_once_costs_nothing_but_time(
    tmp_path: Path, after_training: bool
) -> None:
    """Before they train, and after: then they have the reply, and send it when asked again."""
    whole = Drill(tmp_path / "whole").hold()

    def once() -> Misbehaviour:
        failed: list[int] = []

        def misbehave(site: Site, request: TrainRequest) -> TrainReply:
            if request.round == 2 and not failed:
                failed.append(2)
                if after_training:
                    site.train(request)
                raise OSError("the power went off")
            return site.train(request)

        return misbehave

    drill = Drill(tmp_path / "run", {name: once() for name in NAMES})
    outcome = drill.hold()
    assert outcome.state is EndState.completed
    assert column(outcome, "hospital-1", "attempts") == [1, 2, 1, 1]
    assert final(outcome) == final(whole)
    drill.assert_nobody_charged_twice()


@pytest.mark.usefixtures("server_identity")
def test_all_sites_failing_a_whole_round_ends_the_run_which_goes_on_later(tmp_path: Path) -> None:
    whole = Drill(tmp_path / "whole").hold()
    broken = True

    def misbehave(site: Site, request: TrainRequest) -> TrainReply:
        if request.round == 2 and broken:
            raise OSError("the power went off")
        return site.train(request)

    drill = Drill(tmp_path / "run", dict.fromkeys(NAMES, misbehave))
    with pytest.raises(RunFailed, match="round 2: no of 3 sites"):
        drill.hold()
    broken = False
    outcome = drill.hold()
    assert outcome.state is EndState.completed
    assert final(outcome) == final(whole)
    drill.assert_nobody_charged_twice()


@pytest.mark.usefixtures("server_identity")
def test_a_silent_site_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    drill = Drill(tmp_path, federation={"timeout_seconds": 8.0})
    grid = drill.grid()
    speaks = grid.apps[12]

    def hangs(message: Message) -> Message | None:
        reply = speaks(message)
        trains = message.metadata.message_type == "train"
        return None if trains and '"round": 2' in str(message.content["body"]["json"]) else reply

    grid.apps[12] = hangs
    outcome = drill.hold(grid)
    assert outcome.state is EndState.completed_with_missing_sites
    assert column(outcome, "hospital-2", "reason") == [None, "no_reply", None, None]
    drill.assert_nobody_charged_twice()


class PowerCut(BaseException):
    """Ends a server between two rounds."""


@pytest.mark.usefixtures("server_identity")
@pytest.mark.parametrize(
    ("strategy", "cuts"),
    [(StrategyName.fedadam, range(1, 9)), (StrategyName.scaffold, (2, 5))],
    ids=["fedadam", "scaffold"],
)
def test_a_run_cut_between_its_eight_rounds_ends_with_the_same_bits(
    tmp_path: Path, strategy: StrategyName, cuts: Sequence[int]
) -> None:
    """Real sites, which start anew as well, with their control variates on disk."""
    eight = {"federation": {"rounds": 8}, "strategy": strategy}
    whole = Drill(tmp_path / "whole", **eight).hold()
    folder = tmp_path / "run"
    for after in cuts:

        def cut(event: dict[str, Any], last: int = after) -> None:
            if event["event"] == "round" and event["round"] == last:
                raise PowerCut

        with pytest.raises(PowerCut):
            Drill(folder, observe=cut, **eight).hold()
    drill = Drill(folder, **eight)
    assert final(drill.hold()) == final(whole)
    drill.assert_nobody_charged_twice(rounds=8)


def called(running: Any, text: str) -> list[psutil.Process]:
    """Processes of the run with such a command line."""
    found: list[psutil.Process] = []
    for process in running.processes():
        try:
            if text in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def training(running: Any) -> psutil.Process:
    """A process of the run in which a hospital is at work just now."""
    hosts = called(running, "ray::Host")
    while running.process.poll() is None:  # looking through all processes would take too long
        for host in hosts:
            with contextlib.suppress(psutil.Error):
                if "Host.answer" in " ".join(host.cmdline()):
                    return host
    pytest.fail("no hospital was ever at work")


@pytest.fixture(scope="module")
def busy(small: tuple[str, ...]) -> tuple[str, ...]:
    """Settings of a run in which hospitals are at work most of the time."""
    return (*small, "federation.steps_per_round=15")


@pytest.fixture(scope="module")
def busy_run(busy, simulate, tmp_path_factory: pytest.TempPathFactory):
    """Such a run to which nothing happened."""
    return simulate(*busy, run_dir=tmp_path_factory.mktemp("busy") / "run")


def test_kill_9_of_a_hospital_in_training(busy_run, busy, start_run, tmp_path: Path):
    """Its process comes back, it is asked again, and trains under the reservation it had."""
    run_dir = tmp_path / "run"
    settings = (*busy, "federation.retries=5", f"run_dir={run_dir}")
    running = start_run(*settings, run_dir=run_dir)
    running.wait_for("round 1/3")
    training(running).kill()
    assert running.process.wait(400) == 0, running.log.read_text()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["state"] == "completed"
    assert result["final"]["weights_sha256"] == busy_run.result["final"]["weights_sha256"]
    asked = [site["attempts"] for record in result["rounds"] for site in record["sites"].values()]
    assert max(asked) > 1, "nobody was killed in time"
    for name, site in result["privacy"]["sites"].items():
        assert site["epsilon"] == busy_run.result["privacy"]["sites"][name]["epsilon"]


def test_kill_9_of_the_server_in_a_round(busy_run, busy, start_run, tmp_path: Path):
    """The command says so and ends with 1; resumed, it ends as if nothing had happened."""
    run_dir = tmp_path / "run"
    running = start_run(*busy, f"run_dir={run_dir}", run_dir=run_dir)
    running.wait_for("round 1/3")
    training(running)
    (server,) = called(running, "simulations.runner")
    server.kill()
    assert running.process.wait(120) == 1
    assert "ended without a word" in running.log.read_text()
    again = start_run(f"resume={run_dir}", run_dir=run_dir)
    assert again.process.wait(400) == 0, again.log.read_text()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["state"] == "completed"
    assert [record["round"] for record in result["rounds"]] == [1, 2, 3]
    assert result["final"]["weights_sha256"] == busy_run.result["final"]["weights_sha256"]
    for name, site in result["privacy"]["sites"].items():
        assert site["epsilon"] == busy_run.result["privacy"]["sites"][name]["epsilon"]


# Python runs it before anything else. As soon as a checkpoint is written, the server scans the
# folder for older ones.
KILLS_ITSELF = """
import os, signal, sys

number = os.environ.get("FEDWARD_TEST_KILL_AFTER", "")

def look(event, arguments):
    if event == "os.scandir" and str(arguments[0]).endswith("checkpoints"):
        if os.path.exists(os.path.join(arguments[0], f"round-{int(number):05d}.safetensors")):
            os.kill(os.getpid(), signal.SIGKILL)

if number and "simulations.runner" in sys.orig_argv:
    sys.addaudithook(look)
"""


def requests_in(run_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """What each hospital's ledger holds, beside the process that owns it: round and state."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((run_dir / "ledger").glob("*.sqlite")):
        entries = [request.entry for request in read_ledger(path.stem, path).requests]
        found[path.stem] = [(e.request_id.split("/", 1)[1], e.state.value) for e in entries]
    return found


@pytest.mark.long
def test_kill_9_of_the_server_between_rounds(
    first_run, small, start_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After each checkpoint was written and before anything else, that of the last round included.

    The server kills itself, at the first thing that it does after the checkpoint is whole.
    """
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(KILLS_ITSELF)
    paths = [str(hooks), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    run_dir = tmp_path / "run"
    settings: tuple[str, ...] = (*small, f"run_dir={run_dir}")
    for after in (1, 2, 3):
        monkeypatch.setenv("FEDWARD_TEST_KILL_AFTER", str(after))
        running = start_run(*settings, run_dir=run_dir)
        assert running.process.wait(400) == 1, running.log.read_text()
        assert "ended without a word" in running.log.read_text()
        assert not (run_dir / "result.json").exists()
        kept = latest_checkpoint(run_dir / "checkpoints")
        assert kept is not None
        assert kept.round == after
        # Nobody has heard of the next round.
        done = [(f"{number}/train", "committed") for number in range(1, after + 1)]
        assert requests_in(run_dir) == dict.fromkeys(NAMES, done)
        settings = (f"resume={run_dir}",)
    monkeypatch.delenv("FEDWARD_TEST_KILL_AFTER")
    again = start_run(*settings, run_dir=run_dir)
    assert again.process.wait(400) == 0, again.log.read_text()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["state"] == "completed"
    assert [record["round"] for record in result["rounds"]] == [1, 2, 3]
    assert result["final"]["weights_sha256"] == first_run.result["final"]["weights_sha256"]
    each = [(f"{number}/train", "committed") for number in (1, 2, 3)]
    assert requests_in(run_dir) == dict.fromkeys(NAMES, each)
    for name, site in result["privacy"]["sites"].items():
        assert site["epsilon"] == first_run.result["privacy"]["sites"][name]["epsilon"]


@pytest.mark.long
def test_a_ray_that_does_not_come_up_in_time_is_started_again(small, start_run, tmp_path: Path):
    """Its first process is stopped, neither dead nor alive, until Ray's 30 seconds are over."""
    run_dir = tmp_path / "run"
    running = start_run(*small, f"run_dir={run_dir}", run_dir=run_dir)
    first = raylet(running)
    first.send_signal(signal.SIGSTOP)
    assert running.process.wait(600) == 0, running.log.read_text()
    assert "timed out during startup" in (run_dir / "log.txt").read_text()
    assert json.loads((run_dir / "result.json").read_text())["state"] == "completed"
    assert running.gone_within(60) == []


def raylet(running: Any) -> psutil.Process:
    """Ray's own process of the run, as soon as there is one."""
    for _ in range(20_000):
        for process in called(running, "raylet/raylet "):
            if process.name() == "raylet":
                return process
    pytest.fail("Ray was never started")


@pytest.mark.long
def test_a_hospital_that_hangs(busy, start_run, tmp_path: Path):
    """Its process is stopped, neither dead nor alive: the round ends at its deadline."""
    run_dir = tmp_path / "run"
    settings = ("federation.timeout_seconds=60", "federation.retries=0", f"run_dir={run_dir}")
    running = start_run(*busy, *settings, run_dir=run_dir)
    running.wait_for("round 1/3")
    training(running).send_signal(signal.SIGSTOP)
    assert running.process.wait(600) == 3, running.log.read_text()
    result = json.loads((run_dir / "result.json").read_text())
    assert result["state"] == "completed-with-missing-sites"
    reasons = [s["reason"] for record in result["rounds"] for s in record["sites"].values()]
    assert "no_reply" in reasons
    assert result["final"] is not None
    assert running.gone_within(60) == []


@pytest.mark.long
def test_a_stranger_in_the_network(small, start_run, tmp_path: Path):
    run_dir = tmp_path / "run"
    settings = ("federation.sites=[hospital-1,hospital-2]", f"run_dir={run_dir}")
    running = start_run(*small, *settings, run_dir=run_dir)
    assert running.process.wait(400) == 0, running.log.read_text()
    assert running.log.read_text().count("hospital-3 is never asked to train") == 1
    result = json.loads((run_dir / "result.json").read_text())
    assert result["state"] == "completed"
    assert set(result["rounds"][0]["sites"]) == {"hospital-1", "hospital-2"}
    assert result["privacy"]["sites"]["hospital-3"]["epsilon"] == 0.0
