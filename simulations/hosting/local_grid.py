"""What Flower's Grid needs of a simulation: nodes with numbers, questions out, replies back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid(Grid):
    """Nodes from 1, all there from the beginning; who answers is the subclass's affair."""

    def __init__(self, num_nodes: int) -> None:
        be_somebody()
        self._num_nodes = num_nodes
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Flower's engines alone have runs."""
        raise NotImplementedError

    @property
    def run(self) -> Any:
        """Flower's engines alone have runs."""
        raise NotImplementedError

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        """Left out by Flower in favour of `Message`."""
        raise NotImplementedError

    def send_and_receive(self, *arguments: Any, **more: Any) -> Iterable[Message]:
        """The rounds push and pull."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """From 1."""
        return range(1, self._num_nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message to its node; returns their numbers."""
        numbers: list[str] = []
        for message in messages:
            numbers.append(f"message-{next(self._numbers)}")
            set_number(message, numbers[-1])
            self._ask(message)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that are there, in order of their names."""
        return [self._replies.pop(n) for n in sorted(set(message_ids) & set(self._replies))]

    def _ask(self, message: Message) -> None:
        raise NotImplementedError


def set_number(message: Message, number: str) -> None:
    """Name a message, as Flower's links do on the way."""
    message.metadata.__dict__["_message_id"] = number


def context_of(node: int) -> Context:
    """What Flower tells a ClientApp of its node."""
    about: dict[str, Any] = {"partition-id": node - 1}
    return Context(run_id=1, node_id=node, node_config=about, state=RecordDict(), run_config={})


def be_somebody() -> None:
    """Messages carry who sent them; Flower's engines say so once in a process."""
    for name in ("_run_id", "_node_id", "_task_id"):
        if getattr(TaskIdentity, name) is None:
            setattr(TaskIdentity, name, 1)
