"""The Flower ClientApp: unpack, ask the site, pack. No logic, no torch, no patient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from common import wire
from common.messages import Reason, SiteDescription, TrainReply, TrainRequest

_log = logging.getLogger("fedward.client")
_INTERNAL_ERROR = 900


class AnswersRequests(Protocol):
    """A site, in this process or behind a socket."""

    def describe(self) -> SiteDescription:
        """Public facts about the site."""
        ...

    def train(self, request: TrainRequest) -> TrainReply:
        """Train one round, or say why not."""
        ...


def build(open_site: Callable[[Context], AnswersRequests]) -> ClientApp:
    """A ClientApp that forwards to the site which ``open_site`` returns.

    Guarantees:
        No exception text leaves the site: whatever goes wrong, the server gets a fixed code and
        the traceback goes to the site's own log.
    """
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return _answer(
            message,
            lambda: Message(
                wire.description_content(open_site(context).describe()), reply_to=message
            ),
        )

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def reply() -> Message:
            request = wire.read_request(message.content)
            return Message(wire.reply_content(open_site(context).train(request)), reply_to=message)

        return _answer(message, reply)

    del describe, train
    return app


def _answer(message: Message, reply: Callable[[], Message]) -> Message:
    try:
        return reply()
    except Exception:  # the boundary: nothing of it may leave
        _log.exception("a request failed")
        return Message(Error(code=_INTERNAL_ERROR, reason=Reason.internal_error), reply_to=message)
