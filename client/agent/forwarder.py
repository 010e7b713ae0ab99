"""The other side of the agent's socket: what a bundle's ClientApp asks instead of a site."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from client.agent import schema
from common.errors import FedwardError
from common.messages import SiteDescription, TrainReply, TrainRequest

_T = TypeVar("_T")

SOCKET_ENTRY = "agent-socket"  # of the node's configuration, as are the next two
TICKET_ENTRY = "agent-ticket"
BUNDLE_ENTRY = "agent-bundle"
TICKET_HEADER = "x-fedward-ticket"
BUNDLE_VARIABLE = "FEDWARD_BUNDLE_SHA256"
# trusts nobody: there is no TLS behind a socket, and httpx would read all authorities each time
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_UNKNOWN = "0" * 64
_CONNECT_SECONDS = 10.0


class AgentFailed(FedwardError):
    """The agent is not there, or did not answer as the schema says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSite:
    """A site behind a socket; forwards, and knows nothing.

    Attributes:
        socket: where the agent listens, or the gate before it.
        bundle: SHA-256 of the bundle that asks, from whoever checked it before it was unpacked.
        ticket: what the gate knows this bundle's task by; without a gate there is none.
    """

    socket: Path
    bundle: str = _UNKNOWN
    ticket: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> AgentSite:
        """The agent of a node: behind the gate if that wrote a ticket into the configuration.

        Without a gate the environment names the bundle.
        """
        socket = Path(str(node_config[SOCKET_ENTRY]))
        if TICKET_ENTRY in node_config:
            bundle, ticket = (str(node_config[name]) for name in (BUNDLE_ENTRY, TICKET_ENTRY))
            return cls(socket=socket, bundle=bundle, ticket=ticket)
        return cls(socket=socket, bundle=os.environ.get(BUNDLE_VARIABLE, _UNKNOWN))

    def describe(self) -> SiteDescription:
        """Public facts about the site.

        Raises:
            AgentFailed: There is no such answer.
        """
        question = schema.describe_bytes(self.bundle)
        return _read(schema.read_description, self._ask("describe", question, 200))

    def train(self, request: TrainRequest) -> TrainReply:
        """One round, or why not.

        Raises:
            AgentFailed: There is no such answer.
        """
        content = schema.request_bytes(request, self.bundle)
        return _read(schema.read_reply, self._ask("train", content, 200, 400, 403))

    def answer(self, data: bytes, request: TrainRequest | None = None) -> bytes:
        """The site's answer to one question of a secure sum; this end knows none of its secrets.

        Raises:
            AgentFailed: There is no such answer.
        """
        content = schema.secure_bytes(data, request, self.bundle)
        return _read(schema.read_secure_reply, self._ask("secure", content, 200, 400, 403))

    def _ask(self, kind: str, content: bytes, *known: int) -> bytes:
        # a round may train for hours: the server, not this end, decides how long to wait
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=None, write=None)
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=NO_TLS)
        headers = {"content-type": schema.MEDIA_TYPE}
        if self.ticket is not None:
            headers[TICKET_HEADER] = self.ticket
        # an update has the arrays that were sent, a masked vector twice their bytes at most
        most = 2 * len(content) + schema.TEXT_BYTES
        held = bytearray()
        try:
            with (
                httpx.Client(transport=transport, timeout=timeout, trust_env=False) as client,
                client.stream(
                    "POST", f"http://agent/v1/{kind}", content=content, headers=headers
                ) as response,
            ):
                for chunk in response.iter_bytes():
                    held += chunk
                    if len(held) > most:
                        raise AgentFailed("the agent's reply is too large")
                status, reason = response.status_code, response.headers.get("x-fedward-reason", "")
        except (httpx.HTTPError, OSError) as error:
            raise AgentFailed(f"no agent answers at {self.socket}") from error
        if status not in known:
            raise AgentFailed(f"the agent refused: HTTP {status} {reason}")
        return bytes(held)


def _read(reader: Callable[[bytes], _T], content: bytes) -> _T:
    try:
        return reader(content)
    except ValueError as error:
        raise AgentFailed("the agent's reply does not fit the schema") from error
