"""The gate with real bundles and a real agent; `tests/end_to_end/test_gate.py` has real Flower."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskResponse, PullTaskInputResponse

from client.agent import gate_door, gate_file, schema, service
from client.agent.flower_task import NO_TASK, TOKEN_HEADER, Task
from client.agent.forwarder import BUNDLE_ENTRY, SOCKET_ENTRY, TICKET_ENTRY, AgentFailed, AgentSite
from client.agent.gate import Gate
from common.errors import UsageError
from common.messages import Reason, Status, TrainRequest
from common.privacy.keys import SiteKey
from common.secure_aggregation.conversation import Question, SecureAnswer, Step

Fab = Callable[..., bytes]
NAME = "consortium/fedward-app 1.0.0"


def make_task(bundle: bytes, **changes: Any) -> Task:
    sha256 = hashlib.sha256(bundle).hexdigest()
    given = PullTaskInputResponse(task_id=3)
    given.fab.content, given.fab.hash_str = bundle, sha256
    given.context.node_config[SOCKET_ENTRY].string = "/of/the/node"
    acquired = AcquireTaskResponse(token="t" * 32)
    acquired.task.task_id = 3
    task = Task(
        token="t" * 32,
        is_client_app=True,
        bundle=bundle,
        sha256=sha256,
        announced=(sha256, NAME),
        acquired=acquired.SerializeToString(),
        given=given,
    )
    return replace(task, **changes)


@dataclass
class OneTask:
    """A SuperNode that has tasks, and remembers which were refused."""

    tasks: list[Task]
    refused: list[Task] = field(default_factory=list)

    def acquire(self, request: bytes) -> Task | None:
        del request
        return self.tasks.pop(0) if self.tasks else None

    def refuse(self, task: Task) -> None:
        self.refused.append(task)


@dataclass(kw_only=True)
class Stand:
    """A gate at a hospital whose agent answers nobody else."""

    place: Any
    supernode: OneTask
    gate: Gate
    seconds: list[float]

    @property
    def socket(self) -> Path:
        return self.place.folder / "gate.sock"

    def offer(self, task: Task) -> bytes:
        self.supernode.tasks.append(task)
        return self.gate.acquire(b"")

    def node_config(self, token: str = "t" * 32) -> dict[str, str]:
        given = self.gate.input_of(token)
        assert given is not None
        entries = PullTaskInputResponse.FromString(given).context.node_config
        return {name: value.string for name, value in entries.items()}

    @contextmanager
    def served(self) -> Iterator[int]:
        app = gate_door.build(self.gate, supernode="127.0.0.1:1", agent=self.place.socket)
        server = service.uvicorn_server(app)
        with gate_door._listen("127.0.0.1", 0) as flower, service.listen(self.socket) as door:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [flower, door]})
            thread.start()
            try:
                yield flower.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join()


@pytest.fixture
def approved(fab: Fab) -> bytes:
    return fab("app = 1\n")  # what the fixture `place` approved


@pytest.fixture
def stand(place: Any) -> Stand:
    place.approvals = replace(place.approvals, published=place.folder / "approvals.json")
    place.approvals.publish()
    place.gate_uid = os.getuid()
    supernode, seconds = OneTask([]), [0.0]
    gate = Gate(
        supernode=supernode,
        approvals=place.folder / "approvals.json",
        public_key=place.approvals.key.public_key,
        socket=place.folder / "gate.sock",
        clock=lambda: seconds[0],
    )
    return Stand(place=place, supernode=supernode, gate=gate, seconds=seconds)


def assert_refused(stand: Stand, task: Task) -> None:
    assert stand.offer(task) == NO_TASK
    assert stand.supernode.refused == [task]
    assert not stand.gate.heard_from(task.token)
    assert stand.gate.input_of(task.token) is None


def test_an_approved_bundle_gets_a_ticket_that_names_it(stand: Stand, approved: bytes) -> None:
    task = make_task(approved)
    assert stand.offer(task) == task.acquired
    entries = stand.node_config()
    assert entries[SOCKET_ENTRY] == str(stand.socket)
    assert entries[BUNDLE_ENTRY] == stand.place.bundle
    assert stand.gate.bundle_of(entries[TICKET_ENTRY]) == stand.place.bundle
    assert stand.gate.input_of(task.token) is None  # once
    assert stand.gate.bundle_of("") is stand.gate.bundle_of("é" * 64) is None
    assert stand.supernode.refused == []
    stand.gate.finish(task.token)
    assert stand.gate.bundle_of(entries[TICKET_ENTRY]) is None


def test_a_ticket_lives_as_long_as_its_task_is_heard(stand: Stand, approved: bytes) -> None:
    stand.offer(make_task(approved))
    ticket = stand.node_config()[TICKET_ENTRY]
    stand.seconds[0] = 299.0
    assert stand.gate.heard_from("t" * 32)
    stand.seconds[0] = 598.0
    assert stand.gate.bundle_of(ticket) == stand.place.bundle
    stand.seconds[0] = 600.0
    assert stand.gate.bundle_of(ticket) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"is_client_app": False},
        {"announced": ("ab" * 32, NAME)},
        {"announced": (None, "consortium/other 1.0.0")},
    ],
)
def test_an_approved_bundle_for_another_purpose_or_under_another_name_is_refused(
    stand: Stand, approved: bytes, changes: dict[str, Any]
) -> None:
    task = make_task(approved)
    if "announced" in changes:
        changes = {"announced": (changes["announced"][0] or task.sha256, changes["announced"][1])}
    assert_refused(stand, replace(task, **changes))


def test_another_bundle_is_refused_whatever_it_is_announced_as(
    stand: Stand, fab: Fab, approved: bytes
) -> None:
    honest = make_task(fab("app = 2\n"))
    assert_refused(stand, honest)
    stand.supernode.refused.clear()
    as_approved = replace(honest, announced=make_task(approved).announced)
    assert_refused(stand, as_approved)


def test_what_is_approved_holds_from_the_next_task_on(stand: Stand, approved: bytes) -> None:
    stand.place.approvals.revoke(stand.place.bundle, stand.place.audit)
    assert_refused(stand, make_task(approved))
    stand.supernode.refused.clear()
    stand.place.approvals.approve(stand.place.bundle, stand.place.audit)
    assert stand.offer(make_task(approved)) != NO_TASK


@pytest.mark.parametrize("damage", ["missing", "cut", "another key"])
def test_a_list_that_cannot_be_used_admits_nothing(
    stand: Stand, approved: bytes, damage: str
) -> None:
    path = stand.place.approvals.published
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        other = replace(
            stand.place.approvals, folder=stand.place.folder / "forged", key=SiteKey.generate()
        )
        other.look_at(approved)
        other.approve(stand.place.bundle, stand.place.audit)
    assert_refused(stand, make_task(approved))


def test_a_round_through_the_gate(
    stand: Stand, approved: bytes, request_of: Callable[..., TrainRequest]
) -> None:
    stand.offer(make_task(approved))
    with stand.place.served(), stand.served():
        site = AgentSite.of(stand.node_config())
        assert site.describe().num_patients == 6
        assert site.train(request_of(1)).status is Status.trained
    assert {row["bundle"] for row in stand.place.rows("asked")} == {stand.place.bundle}


def test_a_question_of_a_secure_sum_through_the_gate(
    stand: Stand, approved: bytes, town: Any
) -> None:
    stand.offer(make_task(approved))
    request = town.request()
    question = Question(step=Step.keys, terms=town.terms(request), mechanism=town.mechanism())
    with stand.place.served(), stand.served():
        site = AgentSite.of(stand.node_config())
        said = SecureAnswer.from_bytes(site.answer(question.to_bytes()))
        borrowed = replace(site, bundle="ab" * 32).answer(question.to_bytes())
    assert (said.site, said.reason) == ("hospital-1", Reason.unapproved_trust)
    assert SecureAnswer.from_bytes(borrowed).reason is Reason.unapproved_code
    asked = stand.place.rows("asked")
    assert [row["bundle"] for row in asked] == [stand.place.bundle, "ab" * 32]
    assert {row["step"] for row in asked} == {"keys"}


def test_a_bundle_cannot_ask_in_the_name_of_another(
    stand: Stand, fab: Fab, approved: bytes, request_of: Callable[..., TrainRequest]
) -> None:
    other = stand.place.approvals.look_at(fab("app = 2\n")).sha256
    stand.place.approvals.approve(other, stand.place.audit)
    stand.offer(make_task(approved))
    with stand.place.served(), stand.served():
        site = AgentSite.of(stand.node_config())
        borrowed = replace(site, bundle=other).train(request_of(1))
        for ticket in (None, "0" * 64):
            with pytest.raises(AgentFailed, match="HTTP 401"):
                replace(site, ticket=ticket).describe()
    assert (borrowed.status, borrowed.reason) == (Status.refused, Reason.unapproved_code)
    assert stand.place.requests_charged() == 0


def test_the_agent_answers_the_gate_alone_and_checks_by_itself(
    stand: Stand, fab: Fab, request_of: Callable[..., TrainRequest]
) -> None:
    # as if the gate had failed: it lets a bundle through that was never approved
    unapproved = make_task(fab("app = 3\n"))
    with stand.place.served() as direct, stand.served():
        assert direct.train(request_of(1)).reason is Reason.unapproved_code  # nobody names it
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Gate, "_problem", lambda *_: "")
            stand.offer(unapproved)
        through = AgentSite.of(stand.node_config()).train(request_of(1))
    assert (through.status, through.reason) == (Status.refused, Reason.unapproved_code)
    stand.place.gate_uid = os.getuid() + 1  # another user's process, with an approved bundle
    headers = {service.BUNDLE_HEADER: stand.place.bundle}
    with stand.place.served() as direct:
        transport = httpx.HTTPTransport(uds=str(direct.socket))
        with httpx.Client(transport=transport, trust_env=False) as client:
            question = schema.describe_bytes(stand.place.bundle)
            answer = client.post("http://agent/v1/describe", content=question, headers=headers)
    assert answer.status_code == 403
    assert stand.place.requests_charged() == 0


def test_each_door_is_for_its_own_questions(stand: Stand, approved: bytes) -> None:
    stand.offer(make_task(approved))
    known = {TOKEN_HEADER: "t" * 32}
    with stand.served() as port, httpx.Client(trust_env=False) as flower:
        base = f"http://127.0.0.1:{port}/v1"
        assert flower.post(f"{base}/describe").status_code == 404
        for name in ("pull-task-input", "push-messages"):  # of a task that nobody admitted
            assert flower.post(f"{base}/runtime/{name}").status_code == 403
        given = flower.post(f"{base}/runtime/pull-task-input", headers=known)
        assert given.status_code == 200
        assert PullTaskInputResponse.FromString(given.content).fab.content == approved
        for name in ("create-task", "get-connector", "pull-task-input"):
            assert flower.post(f"{base}/runtime/{name}", headers=known).status_code == 403
        # the SuperNode of this test does not listen
        assert flower.post(f"{base}/runtime/push-messages", headers=known).status_code == 503
        transport = httpx.HTTPTransport(uds=str(stand.socket))
        with httpx.Client(transport=transport, trust_env=False) as bundle:
            for name in ("acquire-task", "pull-task-input"):
                answer = bundle.post(f"http://gate/v1/runtime/{name}", headers=known)
                assert answer.status_code == 404
    assert stand.socket.stat().st_mode & 0o777 == 0o660


GATE = """\
schema: fedward.gate/1
listen: 127.0.0.1:9095
supernode: 127.0.0.1:9094
secret: superexec.secret
socket: gate.sock
agent: /run/fedward/agent.sock
approvals: approvals.json
public_key: '{key}'
"""


def test_the_gates_file(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(GATE.format(key="ab" * 32))
    found = gate_file.read(path)
    assert (found.host, found.port, found.supernode) == ("127.0.0.1", 9095, "127.0.0.1:9094")
    assert found.secret == tmp_path / "superexec.secret"
    assert found.agent == Path("/run/fedward/agent.sock")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("127.0.0.1:9094", "10.0.0.7:9094", "supernode=10.0.0.7:9094: must be 127.0.0.1:PORT"),
        ("127.0.0.1:9095", "0.0.0.0:9095", "listen=0.0.0.0:9095: must be 127.0.0.1:PORT"),
        ("127.0.0.1:9095", "127.0.0.1:99999", "listen"),
        ("'abab", "'xxab", "public_key"),
        ("socket:", "sockets:", "sockets: unknown"),
        ("secret: superexec.secret\n", "", "secret: missing"),
        ("gate/1", "gate/2", "must be fedward.gate/1"),
    ],
)
def test_a_slip_in_the_gates_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "gate.yaml"
    text = GATE.format(key="ab" * 32)
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=said):
        gate_file.read(path)
