"""The Flower ClientApp: unpack, ask the site, pack. No logic, no torch, no patient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from common import wire
from common.errors import UsageError
from common.messages import Reason, SiteDescription, TrainReply, TrainRequest

_log = logging.getLogger("fedward.client")
_INTERNAL_ERROR = 900
_AGENT_SOCKET = "agent-socket"


class AnswersRequests(Protocol):
    """A site, in this process or behind a socket."""

    def describe(self) -> SiteDescription:
        """Public facts about the site."""
        ...

    def train(self, request: TrainRequest) -> TrainReply:
        """Train one round, or say why not."""
        ...


@runtime_checkable
class AnswersSecurely(Protocol):
    """A site that takes part in sums of which nobody sees the terms."""

    def answer(self, data: bytes, request: TrainRequest | None = None) -> bytes:
        """The answer to one question of such a sum."""
        ...


def build(open_site: Callable[[Context], AnswersRequests]) -> ClientApp:
    """A ClientApp that forwards to the node's site agent, or to the site of ``open_site``.

    A node whose configuration has ``agent-socket`` has an agent, which alone holds the data.

    Guarantees:
        No exception text leaves the site: whatever goes wrong, the server gets a fixed code and
        the traceback goes to the site's own log.
    """
    app = ClientApp()

    def site_of(context: Context) -> AnswersRequests:
        if _AGENT_SOCKET not in context.node_config:
            return open_site(context)
        return _agent(context.node_config)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return _answer(
            message,
            lambda: Message(
                wire.description_content(site_of(context).describe()), reply_to=message
            ),
        )

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def reply() -> Message:
            request = wire.read_request(message.content)
            return Message(wire.reply_content(site_of(context).train(request)), reply_to=message)

        return _answer(message, reply)

    @app.query("secure")
    def secure(message: Message, context: Context) -> Message:
        def reply() -> Message:
            site = site_of(context)
            if not isinstance(site, AnswersSecurely):
                raise UsageError("this site takes no part in secure aggregation")
            answer = site.answer(*wire.read_secure(message.content))
            return Message(wire.secure_content(answer), reply_to=message)

        return _answer(message, reply)

    del describe, train, secure
    return app


def _answer(message: Message, reply: Callable[[], Message]) -> Message:
    try:
        return reply()
    except Exception:  # the boundary: nothing of it may leave
        _log.exception("a request failed")
        return Message(Error(code=_INTERNAL_ERROR, reason=Reason.internal_error), reply_to=message)


def _agent(node_config: Mapping[str, object]) -> AnswersRequests:
    from client.agent.forwarder import AgentSite  # simulations need no HTTP

    return AgentSite.of(node_config)


def _no_site(context: Context) -> AnswersRequests:
    del context
    raise UsageError(f"the node's configuration has no {_AGENT_SOCKET}")


app = build(_no_site)
