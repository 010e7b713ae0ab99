"""Tasks of Flower's SuperNode, as gate and runner take them: their only part that knows flwr.

It speaks the Runtime API (protobuf over HTTP) in place of ``flower-superexec`` and, to refuse, in
place of ``flwr-clientapp``; the runner asks the gate through it, and does a ClientApp's work. The
client, its headers and the message objects are modules of flwr 1.41 that Flower does not call
public; an end-to-end test with Flower's processes pins them.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PullTaskInputResponse,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output, run_clientapp
from google.protobuf.message import DecodeError

from common.messages import Reason
from common.wire import UNAPPROVED_ERROR

TOKEN_HEADER = TASK_TOKEN_HEADER
NO_TASK = AcquireTaskResponse().SerializeToString()
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_MESSAGE_SECONDS = 20.0  # SuperExec gives up after 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A task that the gate took from the SuperNode, with the bundle that would run.

    Attributes:
        token: Flower's secret of this task.
        is_client_app: whether it is of the one kind that a hospital runs.
        bundle: content of the bundle.
        sha256: of that content, computed here.
        announced: what Flower calls the bundle: hash, then identity and version of the run.
    """

    token: str
    is_client_app: bool
    bundle: bytes = field(repr=False)
    sha256: str
    announced: tuple[str, str]
    acquired: bytes = field(repr=False)
    given: PullTaskInputResponse = field(repr=False)

    def given_with(self, node_config: dict[str, str]) -> bytes:
        """The task's input with these entries in the node's configuration."""
        changed = PullTaskInputResponse()
        changed.CopyFrom(self.given)
        for name, value in node_config.items():
            changed.context.node_config[name].string = value
        return changed.SerializeToString()


@dataclass(frozen=True, kw_only=True, slots=True)
class Supernode:
    """The Runtime API of a SuperNode in ``--isolation process``.

    Attributes:
        address: host and port, without TLS: loopback.
        secret: its SuperExec secret.
    """

    address: str
    secret: bytes = field(repr=False)

    def acquire(self, request: bytes) -> Task | None:
        """A pending task with its input, if there is one.

        Raises:
            ValueError: ``request`` is no `AcquireTaskRequest`.
            httpx.HTTPError: The SuperNode did not answer, or refused.
        """
        try:
            wanted = AcquireTaskRequest.FromString(request)
        except DecodeError as error:
            raise ValueError("not an AcquireTaskRequest") from error
        signer = SuperExecAuthHttpInterceptor(
            master_secret=self.secret, protected_methods={_ACQUIRE}
        )
        client = self._client(signer)
        try:
            found = client.AcquireTask(wanted)
        finally:
            client.close()
        if not found.HasField("task") or not found.token:
            return None
        client = self._client(RuntimeTokenHttpInterceptor(found.token))
        try:
            given = client.PullTaskInput(PullTaskInputRequest())
        finally:
            client.close()
        return Task(
            token=found.token,
            is_client_app=found.task.type == TaskType.CLIENT_APP,
            bundle=given.fab.content,
            sha256=hashlib.sha256(given.fab.content).hexdigest(),
            announced=(given.fab.hash_str, f"{given.run.fab_id} {given.run.fab_version}"),
            acquired=found.SerializeToString(),
            given=given,
        )

    def refuse(self, task: Task) -> None:
        """Answers the task's message with an error, as Flower's own process would, and ends it.

        Without this the SuperNode would wait for a reply until the task's token expires.

        Raises:
            httpx.HTTPError: The SuperNode did not answer, or refused.
            TimeoutError: The SuperNode has no message for the task.
        """
        client = self._client(RuntimeTokenHttpInterceptor(task.token))
        context = context_from_proto(task.given.context)
        node, run_id = Node(node_id=context.node_id), context.run_id
        # a message of Flower takes its identity from the process that makes it
        TaskIdentity.task_id = task.given.task_id
        TaskIdentity.run_id, TaskIdentity.node_id = run_id, context.node_id
        try:
            tree = _message_tree(client)
            message = pull_and_inflate_object_from_tree(
                tree,
                make_pull_object_fn_protobuf(client.PullObject, node, run_id),
                make_confirm_message_received_fn_protobuf(
                    client.ConfirmMessageReceived, node, run_id
                ),
                return_type=Message,
            )
            message.metadata.__dict__["_message_id"] = tree.object_id  # as flwr-clientapp does
            reason = Reason.unapproved_code.value
            error = Error(code=UNAPPROVED_ERROR, reason=reason)
            push_message(client, Message(error, reply_to=message), context)
            push_task_output(client, None, SubStatus.FAILED, reason)
        finally:
            client.close()

    def _client(self, *interceptors: object) -> RuntimeHttpClient:
        return _client(self.address, RuntimeVersionHttpInterceptor("fedward gate"), *interceptors)


class GateTasks:
    """What the gate gives out, asked for as Flower's SuperExec would.

    Args:
        address: of the gate's port, without TLS: loopback.
    """

    def __init__(self, address: str) -> None:
        self._client = _client(address, RuntimeVersionHttpInterceptor("fedward runner"))

    def next_token(self) -> str | None:
        """Flower's secret of a task that the gate let pass, if there is one.

        Raises:
            httpx.HTTPError: The gate did not answer.
        """
        # every kind of task: the gate refuses all but one, and a task that nobody takes is no end
        wanted = AcquireTaskRequest(supported_task_types=[kind.value for kind in TaskType])
        found = self._client.AcquireTask(wanted)
        return found.token if found.HasField("task") and found.token else None

    def close(self) -> None:
        """Asks no more."""
        self._client.close()


def has_arrived(name: str, answer: bytes) -> bool:
    """Whether a SuperNode's answer to the question ``name`` has what was asked for.

    Only what will come, and is not there yet, has not arrived.
    """
    if name == "pull-messages":
        return len(PullAppMessagesResponse.FromString(answer).messages_list) > 0
    if name == "pull-object":
        found = PullObjectResponse.FromString(answer)
        return found.object_available or not found.object_found
    return True


def run_client_app(address: str, token: str) -> None:
    """What ``flwr-clientapp`` does: takes the task's input, runs its ClientApp, replies.

    Raises:
        SystemExit: At the end.
    """
    run_clientapp(
        runtime_api_address=address,
        token=token,
        insecure=True,
        parent_pid=os.getppid(),
        runtime_dependency_install=False,
    )


def _client(address: str, *interceptors: object) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        address,
        insecure=True,
        root_certificates=None,
        interceptors=list(interceptors),  # type: ignore[arg-type]
    )


def _message_tree(client: RuntimeHttpClient):
    """The message's objects; the SuperNode makes the task before it has the message."""
    deadline = time.monotonic() + _MESSAGE_SECONDS
    while time.monotonic() < deadline:
        found = client.PullMessages(PullAppMessagesRequest())
        if found.messages_list:
            return found.message_object_trees[0]
        time.sleep(0.2)
    raise TimeoutError("the SuperNode has no message for the task")
