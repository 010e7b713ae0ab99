"""Flower's ClientApp with an agent behind it: messages of Flower in, messages of Flower out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app as app_module
from client.agent.forwarder import BUNDLE_VARIABLE, SOCKET_ENTRY, AgentSite
from common import wire
from common.messages import Reason, Status, TrainRequest

RequestOf = Callable[..., TrainRequest]


@pytest.fixture(autouse=True)
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower sets in a process before the app's code runs."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def ask(kind: str, content: RecordDict, **node: Any) -> Message:
    context = Context(run_id=1, node_id=2, node_config=node, state=RecordDict(), run_config={})
    message = Message(content=content, message_type=kind, dst_node_id=2)
    return app_module.app(message, context)


def test_a_node_with_an_agent_forwards_to_it(
    place: Any, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"agent-socket": str(place.socket)}
    monkeypatch.setenv(BUNDLE_VARIABLE, place.bundle)
    with place.served():
        described = ask(wire.DESCRIBE, wire.describe_content(), **node)
        reply = ask("train", wire.request_content(request_of()), **node)
    assert wire.read_description(described.content).num_patients == 6
    answer = wire.read_reply(reply.content)
    assert (answer.site, answer.status) == ("hospital-1", Status.trained)
    assert answer.weights is not None
    assert answer.weights.keys() == request_of().weights.keys()


def test_code_that_nobody_vouched_for_is_refused(
    place: Any, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    with place.served():
        reply = ask("train", wire.request_content(request_of()), **{"agent-socket": place.socket})
    answer = wire.read_reply(reply.content)
    assert (answer.status, answer.reason) == (Status.refused, Reason.unapproved_code)
    assert place.requests_charged() == 0


# httpcore leaves the socket whose connection was refused to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("node", [{"agent-socket": "/nowhere/agent.sock"}, {}])
def test_a_node_without_an_agent_says_only_that_it_failed(
    request_of: RequestOf, node: dict[str, str]
) -> None:
    reply = ask("train", wire.request_content(request_of()), **node)
    assert reply.has_error()
    assert reply.error == Error(code=900, reason=Reason.internal_error)


def test_the_environment_names_the_bundle(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUNDLE_VARIABLE, "ab" * 32)
    assert AgentSite.of({SOCKET_ENTRY: str(place.socket)}).bundle == "ab" * 32
