"""Messages that are out, and the replies that have come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import wire

Tag = TypeVar("Tag")


class Mailbox(Generic[Tag]):
    """Remembers what each message was about, however long its reply takes. Never blocks.

    A question that was not answered in time stays here, so that its reply is recognised when it
    comes.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._out: dict[str, Tag] = {}

    def send(self, content: RecordDict, *, node: int, kind: str, tag: Tag) -> bool:
        """Send one message; whether the network took it."""
        message = wire.message(content, node=node, kind=kind)
        taken = [number for number in self._grid.push_messages([message]) if number]
        if taken:
            self._out[message.metadata.message_id] = tag
        return bool(taken)

    def arrived(self) -> Iterator[tuple[Tag, Message]]:
        """Replies that are there, each once, in no particular order."""
        if not self._out:
            return
        for reply in self._grid.pull_messages(set(self._out)):
            tag = self._out.pop(reply.metadata.reply_to_message_id, None)
            if tag is not None:
                yield tag, reply
