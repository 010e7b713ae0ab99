"""The ClientApp with Flower's own messages: it forwards, and lets nothing out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from client import app as app_module
from common import wire
from common.messages import (
    Reason,
    Recipe,
    SiteDescription,
    Status,
    TrainReply,
    TrainRequest,
)

PATIENT = "PATIENT-7531-MEIER"
REQUEST = TrainRequest(
    run_id="run",
    round=2,
    recipe=Recipe(
        mechanism="dp_sgd",
        unit="patient",
        accountant="pld",
        delta=1e-5,
        sampling_rate=0.5,
        noise_multiplier=1.0,
        steps=3,
        max_grad_norm=1.0,
        images_per_patient=2,
        optimizer="sgd",
        learning_rate=0.1,
        physical_batch=4,
    ),
    frozen_sha256="ab" * 32,
    weights={"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3)},
)


@pytest.fixture(autouse=True)
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower sets in a process before the app's code runs."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class EchoSite:
    """Answers with the weights it was sent, doubled."""

    def __init__(self) -> None:
        self.requests: list[TrainRequest] = []

    def describe(self) -> SiteDescription:
        return SiteDescription(site="hospital-1", num_patients=12)

    def train(self, request: TrainRequest) -> TrainReply:
        self.requests.append(request)
        return TrainReply(
            site="hospital-1",
            status=Status.trained,
            num_patients=12,
            spend={"epsilon": 1.5},
            weights={name: 2 * value for name, value in request.weights.items()},
        )


class BrokenSite(EchoSite):
    """Fails with the name of a patient in every part of the exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def describe(self) -> SiteDescription:
        raise self.error

    def train(self, request: TrainRequest) -> TrainReply:
        raise self.error from KeyError(PATIENT)


def make_context() -> Context:
    return Context(
        run_id=1, node_id=2, node_config={"partition-id": 0}, state=RecordDict(), run_config={}
    )


def make_message(kind: str, content: RecordDict) -> Message:
    # as on arrival: the reply takes its route from the request
    return Message(content=content, message_type=kind, dst_node_id=2)


def train_message() -> Message:
    return make_message("train", wire.request_content(REQUEST))


def describe_message() -> Message:
    return make_message(wire.DESCRIBE, wire.describe_content())


def everything_in(message: Message) -> bytes:
    """The message as it goes over the wire, and as Python shows it."""
    return message_to_proto(message).SerializeToString() + repr(message).encode()


def test_describe_answers_who_the_site_is() -> None:
    site = EchoSite()
    reply = app_module.build(lambda _: site)(describe_message(), make_context())
    assert wire.read_description(reply.content) == site.describe()


def test_train_forwards_the_request_and_the_reply_as_they_are() -> None:
    site = EchoSite()
    reply = app_module.build(lambda _: site)(train_message(), make_context())
    (request,) = site.requests
    assert request.request_id == REQUEST.request_id
    assert request.recipe == REQUEST.recipe
    assert request.frozen_sha256 == REQUEST.frozen_sha256
    answer = wire.read_reply(reply.content)
    assert answer.weights is not None
    assert np.array_equal(answer.weights["head.weight"], 2 * REQUEST.weights["head.weight"])
    assert (answer.status, answer.spend) == (Status.trained, {"epsilon": 1.5})


def test_the_site_is_opened_for_the_node_that_is_asked() -> None:
    seen: list[Any] = []

    def open_site(context: Context) -> EchoSite:
        seen.append(context.node_config["partition-id"])
        return EchoSite()

    context = make_context()
    context.node_config["partition-id"] = 3
    app_module.build(open_site)(describe_message(), context)
    assert seen == [3]


@pytest.mark.parametrize("make_message", [train_message, describe_message])
@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"patient {PATIENT} has no label"),
        FileNotFoundError(2, "no such file", f"/data/{PATIENT}.dcm"),
        RuntimeError(PATIENT, {PATIENT: PATIENT}),
        ExceptionGroup(PATIENT, [OSError(PATIENT)]),
        type(PATIENT.replace("-", "_"), (Exception,), {})(PATIENT),
    ],
    ids=lambda error: type(error).__name__[:9],
)
def test_no_text_of_an_exception_leaves_the_site(
    make_message: Callable[[], Message], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reply = app_module.build(lambda _: BrokenSite(error))(make_message(), make_context())
    sent = everything_in(reply)
    for secret in (PATIENT, PATIENT.replace("-", "_"), "7531", "Traceback", "no label"):
        assert secret.encode() not in sent
    assert reply.has_error()
    assert reply.error == Error(code=900, reason=Reason.internal_error)
    assert PATIENT in caplog.text  # the site's own log has it


def test_no_text_leaves_when_the_site_cannot_even_be_opened() -> None:
    def fail(context: Context) -> EchoSite:
        raise OSError(f"/data/{PATIENT} is gone")

    reply = app_module.build(fail)(train_message(), make_context())
    assert reply.has_error()
    assert PATIENT.encode() not in everything_in(reply)


def _bad_contents() -> list[RecordDict]:
    arrays = ArrayRecord({"head.weight": Array(np.zeros(2, np.float32))})
    bad_recipe = wire.request_content(REQUEST)
    body = bad_recipe.config_records["body"]
    body["json"] = str(body["json"]).replace('"steps": 3', '"steps": 2.5')
    assert "2.5" in str(body["json"])
    return [
        RecordDict(),
        RecordDict({"body": ConfigRecord({"json": "{"}), "weights": arrays}),
        RecordDict({"body": ConfigRecord({"json": '{"schema": "other/1"}'}), "weights": arrays}),
        bad_recipe,
    ]


@pytest.mark.parametrize("content", _bad_contents())
def test_what_does_not_fit_the_schema_never_reaches_the_site(content: RecordDict) -> None:
    site = EchoSite()
    reply = app_module.build(lambda _: site)(make_message("train", content), make_context())
    assert reply.has_error()
    assert site.requests == []


@pytest.mark.parametrize("module", ["client.app", "simulations.cli"])
def test_the_control_plane_starts_without_torch(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'timm', 'opacus'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
