"""The agent's door: HTTP over a Unix socket, three questions, bodies of bounded size."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import struct
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from client.agent.schema import MEDIA_TYPE
from common.errors import LedgerError, UsageError
from common.messages import Reason

if TYPE_CHECKING:
    from client.agent.agent import Agent, Answer

_log = logging.getLogger("fedward.agent")
_BODY_SECONDS = 120.0
_MOST_CONNECTIONS = 16
_POLICY_SECONDS = 1.0
_SOCKET_MODE = 0o660  # the agent's user, and the group of who may ask
BUNDLE_HEADER = "x-fedward-bundle"
_MESSAGE = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_BODY = {"requestBody": {"required": True, **_MESSAGE}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "what was asked for", **_MESSAGE},
    400: {"description": "not a message of this schema", **_MESSAGE},
    403: {"description": "refused; x-fedward-reason says why", **_MESSAGE},
    408: {"description": "the body did not come", **_MESSAGE},
    413: {"description": "the body is too large", **_MESSAGE},
    500: {"description": "internal_error; nothing more is said", **_MESSAGE},
}


class _PeerProtocol(H11Protocol):
    """Tells the application whose process is at the other end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "uid": _uid_of(transport)}


def _uid_of(transport: asyncio.Transport) -> int | None:
    peer = transport.get_extra_info("socket")
    if peer is None:
        return None
    layout = struct.Struct("3i")  # pid, uid, gid: see unix(7), SO_PEERCRED
    return layout.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))[1]


def build(agent: Agent, *, most_bytes: int) -> FastAPI:
    """The agent as an application: ``POST /v1/describe``, ``/v1/train``, ``/v1/secure``."""
    from client.agent.agent import Answer  # brings torch, which a gate does without

    app = FastAPI(openapi_url=None)

    async def answer(kind: str, request: Request) -> Response:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await body_of(request, most_bytes)
        except (TimeoutError, ClientDisconnect):
            return _response(Answer(status=408, reason=Reason.bad_request))
        if body is None:
            return _response(Answer(status=413, reason=Reason.too_large))
        uid = cast("dict[str, Any]", request.scope.get("state", {})).get("uid")
        named = request.headers.get(BUNDLE_HEADER)
        return _response(await run_in_threadpool(agent.answer, kind, body, uid, named))

    @app.post("/v1/describe", openapi_extra=_BODY, responses=_RESPONSES)
    async def describe(request: Request) -> Response:
        return await answer("describe", request)

    @app.post("/v1/train", openapi_extra=_BODY, responses=_RESPONSES)
    async def train(request: Request) -> Response:
        return await answer("train", request)

    @app.post("/v1/secure", openapi_extra=_BODY, responses=_RESPONSES)
    async def secure(request: Request) -> Response:
        return await answer("secure", request)

    del describe, train, secure
    return app


async def body_of(request: Request, most_bytes: int) -> bytes | None:
    """The body, or nothing if it is too long; no more than the bound is ever held."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced[:20]) > most_bytes:
        return None
    held = bytearray()
    async for chunk in request.stream():
        held += chunk
        if len(held) > most_bytes:
            return None
    return bytes(held)


def _response(answer: Answer) -> Response:
    headers = {} if answer.reason is None else {"x-fedward-reason": answer.reason.value}
    if answer.status in {408, 413}:  # there may be more of the body, which nobody will read
        headers["connection"] = "close"
    return Response(answer.content, answer.status, headers, media_type=MEDIA_TYPE)


def server(agent: Agent, *, most_bytes: int) -> uvicorn.Server:
    """What answers, ready to be run with an open socket."""
    return uvicorn_server(build(agent, most_bytes=most_bytes))


def uvicorn_server(app: FastAPI) -> uvicorn.Server:
    """What answers as ``app``; says nothing about itself."""
    config = uvicorn.Config(
        app,
        http=_PeerProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
    )
    return uvicorn.Server(config)


def serve(agent: Agent, path: Path, *, most_bytes: int) -> None:
    """Answers at the socket at ``path`` until SIGTERM or SIGINT; follows the policy meanwhile.

    Raises:
        UsageError: The socket cannot be made there, or another agent listens.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(agent, over), daemon=True)
    door = listen(path)
    try:
        watch.start()
        run_until_signal(server(agent, most_bytes=most_bytes), [door])
    finally:
        over.set()
        watch.join()
        door.close()
        path.unlink(missing_ok=True)


def run_until_signal(answering: uvicorn.Server, doors: list[socket.socket]) -> None:
    """Answers at ``doors`` until SIGTERM or SIGINT, and then comes back."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        answering.should_exit = True

    # uvicorn ends well at a signal, but then raises it again for whoever had a handler before:
    # without one the process would die here, with its socket left behind.
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        answering.run(sockets=doors)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(agent: Agent, over: threading.Event) -> None:
    """So that a change of the policy is in the log even if nobody asks anything."""
    while not over.wait(_POLICY_SECONDS):
        try:
            agent.look_at_policy()
        except LedgerError:
            _log.exception("a change of the policy could not be logged")


def listen(path: Path) -> socket.socket:
    """An open Unix socket at ``path`` for the agent's user and group alone.

    Raises:
        UsageError: It cannot be made there, or another agent listens.
    """
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        _clear(path)
        door.bind(str(path))
        door.listen(_MOST_CONNECTIONS)
    except OSError as error:
        door.close()
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except BaseException:
        door.close()
        raise
    finally:
        os.umask(before)
    return door


def _clear(path: Path) -> None:
    """Removes the socket that a killed agent left behind.

    Raises:
        UsageError: Something else is there, or an agent that answers.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path}: something else is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise UsageError(f"{path}: another agent listens there")
