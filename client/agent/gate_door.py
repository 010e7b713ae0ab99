"""The gate's two doors: loopback for Flower's processes, a Unix socket for the ClientApp."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from fastapi import FastAPI, Request, Response
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from client.agent import flower_task, service
from client.agent.flower_task import TOKEN_HEADER, Supernode
from client.agent.forwarder import NO_TLS, TICKET_HEADER
from client.agent.gate import Gate
from client.agent.gate_file import GateFile
from client.agent.service import BUNDLE_HEADER
from common.errors import UsageError

_log = logging.getLogger("fedward.gate")
_PROTOBUF = "application/protobuf"
_FORWARDED = (  # what flwr-clientapp needs after it has its input; nothing else passes
    "send-task-heartbeat",
    "pull-messages",
    "pull-object",
    "confirm-message-received",
    "push-messages",
    "push-object",
    "push-task-output",
)
_MOST_BYTES = 64 * 1024 * 1024  # arrays travel in objects of 5 MiB
_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_ARRIVAL_SECONDS = 20.0  # a ClientApp gives up after 30
_PAUSE_SECONDS = 0.05
_NOT_FORWARDED = {"host", "content-length", "connection", "transfer-encoding", "keep-alive"}


def build(gate: Gate, *, supernode: str, agent: Path) -> FastAPI:
    """The gate as an application.

    Args:
        gate: decides.
        supernode: address of the SuperNode's Runtime API.
        agent: the agent's socket.
    """
    app = FastAPI(openapi_url=None)

    @app.post("/v1/runtime/{name}")
    async def runtime(name: str, request: Request) -> Response:
        if _is_unix(request):
            return Response(status_code=404)
        body = await service.body_of(request, _MOST_BYTES)
        if body is None:
            return Response(status_code=413, headers={"connection": "close"})
        if name == "acquire-task":
            return await run_in_threadpool(_acquire, gate, body)
        token = request.headers.get(TOKEN_HEADER, "")
        if not gate.heard_from(token):
            return Response(status_code=403)
        if name == "pull-task-input":
            given = gate.input_of(token)
            return Response(given, 403 if given is None else 200, media_type=_PROTOBUF)
        if name not in _FORWARDED:
            return Response(status_code=403)
        answer = await _arrived(f"http://{supernode}/v1/runtime/{name}", request, body)
        if name == "push-task-output" and answer.status_code == 200:
            gate.finish(token)
        return answer

    @app.post("/v1/describe")
    async def describe(request: Request) -> Response:
        return await _ask(gate, agent, "describe", request)

    @app.post("/v1/train")
    async def train(request: Request) -> Response:
        return await _ask(gate, agent, "train", request)

    @app.post("/v1/secure")
    async def secure(request: Request) -> Response:
        return await _ask(gate, agent, "secure", request)

    del runtime, describe, train, secure
    return app


def _is_unix(request: Request) -> bool:
    server = request.scope.get("server")
    return server is not None and server[1] is None  # see ASGI: a Unix socket has no port


def _acquire(gate: Gate, body: bytes) -> Response:
    try:
        return Response(gate.acquire(body), media_type=_PROTOBUF)
    except ValueError:
        return Response(status_code=400)
    except (httpx.HTTPError, TimeoutError) as error:
        # nothing was admitted: the task's token expires, and the SuperNode answers for it
        _log.warning("the SuperNode cannot be asked (%s)", type(error).__name__)
        return Response(status_code=503)


def _headers(request: Request) -> dict[str, str]:
    return {k: v for k, v in request.headers.items() if k not in _NOT_FORWARDED}


async def _arrived(url: str, request: Request, body: bytes) -> Response:
    """The SuperNode's answer, once it has what it is asked for.

    A SuperNode makes the task before it has the message. A ClientApp that the runner forks is
    there first: Flower would fail without a message, and wait seconds for a part of it.
    """
    name, deadline = url.rpartition("/")[2], time.monotonic() + _ARRIVAL_SECONDS
    while True:
        answer = await _forward(url, request, body)
        is_late = time.monotonic() > deadline or answer.status_code != 200
        if is_late or flower_task.has_arrived(name, bytes(answer.body)):
            return answer
        await asyncio.sleep(_PAUSE_SECONDS)


async def _forward(url: str, request: Request, body: bytes) -> Response:
    try:
        async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False, verify=NO_TLS) as client:
            answer = await client.post(url, content=body, headers=_headers(request))
    except httpx.HTTPError as error:
        _log.warning("the SuperNode does not answer (%s)", type(error).__name__)
        return Response(status_code=503)
    headers = {k: v for k, v in answer.headers.items() if k not in _NOT_FORWARDED}
    return Response(answer.content, answer.status_code, headers)


async def _ask(gate: Gate, agent: Path, kind: str, request: Request) -> Response:
    """Passes a question to the agent in the name of the bundle that the ticket is for."""
    if not _is_unix(request):
        return Response(status_code=404)
    bundle = gate.bundle_of(request.headers.get(TICKET_HEADER, ""))
    if bundle is None:
        return Response(status_code=401, headers={"connection": "close"})
    headers = {BUNDLE_HEADER: bundle}
    for name in ("content-type", "content-length"):
        if name in request.headers:
            headers[name] = request.headers[name]
    client = httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(agent), verify=NO_TLS),
        timeout=httpx.Timeout(_CONNECT_SECONDS, read=None, write=None),
        trust_env=False,
    )
    question = client.build_request(
        "POST", f"http://agent/v1/{kind}", content=request.stream(), headers=headers
    )
    try:
        answer = await client.send(question, stream=True)
    except (httpx.HTTPError, OSError):
        await client.aclose()
        _log.warning("no agent answers at %s", agent)
        return Response(status_code=502, headers={"connection": "close"})
    kept = {k: v for k, v in answer.headers.items() if k == "x-fedward-reason"}
    return StreamingResponse(
        _chunks(answer),
        answer.status_code,
        kept,
        media_type=answer.headers.get("content-type"),
        background=BackgroundTask(client.aclose),
    )


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def run(file: GateFile) -> None:
    """Stands at both doors until SIGTERM or SIGINT.

    Raises:
        UsageError: The secret cannot be read, or a door cannot be opened.
    """
    try:
        secret = file.secret.read_bytes()
    except OSError as error:
        raise UsageError(f"{file.secret}: {error.strerror}") from error
    if not secret:
        raise UsageError(f"{file.secret}: empty")
    gate = Gate(
        supernode=Supernode(address=file.supernode, secret=secret),
        approvals=file.approvals,
        public_key=file.public_key,
        socket=file.socket,
    )
    app = build(gate, supernode=file.supernode, agent=file.agent)
    with _listen(file.host, file.port) as flower, service.listen(file.socket) as door:
        try:
            _log.info("the gate stands at port %d and %s", file.port, file.socket)
            service.run_until_signal(service.uvicorn_server(app), [flower, door])
        finally:
            file.socket.unlink(missing_ok=True)


def _listen(host: str, port: int) -> socket.socket:
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
        door.listen()
    except OSError as error:
        door.close()
        raise UsageError(f"listen={host}:{port}: {error.strerror}") from error
    return door
