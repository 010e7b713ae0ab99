"""A ClientApp that is quicker than its message: the gate waits, Flower need not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from flwr.proto.message_pb2 import Message, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse

from client.agent import gate_door
from client.agent.gate import Gate

Supernode = Callable[..., tuple[Any, list[str]]]
NO_MESSAGE = PullAppMessagesResponse().SerializeToString()
A_MESSAGE = PullAppMessagesResponse(messages_list=[Message()]).SerializeToString()
ON_ITS_WAY = PullObjectResponse(object_found=True).SerializeToString()
THERE = PullObjectResponse(
    object_found=True, object_available=True, object_content=b"x" * 1000
).SerializeToString()
UNKNOWN = PullObjectResponse().SerializeToString()


def ask(app: Any, name: str) -> httpx.Response:
    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gate:81") as client:
            return await client.post(f"/v1/runtime/{name}", content=b"question")

    return asyncio.run(post())


class Hears:
    """A gate that has admitted whoever asks."""

    def heard_from(self, token: str) -> bool:
        del token
        return True


@pytest.fixture
def supernode() -> Iterator[Supernode]:
    """A server that gives these answers in turn, the last one for ever; and the gate before it."""
    servers: list[ThreadingHTTPServer] = []

    def serve(*answers: bytes, status: int = 200) -> tuple[Any, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                content = answers[min(len(asked), len(answers) - 1)]
                asked.append(self.path)
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its own name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        app = gate_door.build(
            cast("Gate", Hears()),
            supernode=f"127.0.0.1:{server.server_address[1]}",
            agent=Path("/nowhere"),
        )
        return app, asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "answers", "times"),
    [
        ("pull-messages", (NO_MESSAGE, NO_MESSAGE, A_MESSAGE), 3),
        ("pull-messages", (A_MESSAGE,), 1),
        ("pull-object", (ON_ITS_WAY, ON_ITS_WAY, THERE), 3),
        ("pull-object", (THERE,), 1),
        ("pull-object", (UNKNOWN,), 1),
        ("push-messages", (PushAppMessagesResponse().SerializeToString(),), 1),
    ],
)
def test_what_is_on_its_way_is_waited_for_and_nothing_else(
    supernode: Supernode, name: str, answers: tuple[bytes, ...], times: int
) -> None:
    app, asked = supernode(*answers)
    reply = ask(app, name)
    assert (reply.status_code, reply.content) == (200, answers[-1])
    assert asked == [f"/v1/runtime/{name}"] * times


def test_what_never_comes_is_answered_as_the_supernode_does(
    supernode: Supernode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_door, "_ARRIVAL_SECONDS", 0.2)
    app, asked = supernode(NO_MESSAGE)
    assert ask(app, "pull-messages").content == NO_MESSAGE
    assert len(asked) > 1


def test_a_refusal_is_passed_on_at_once(supernode: Supernode) -> None:
    app, asked = supernode(b"no", status=403)
    reply = ask(app, "pull-messages")
    assert (reply.status_code, reply.content, len(asked)) == (403, b"no", 1)
