"""A whole federation in one process: Flower's apps and the real sites, without Ray between them.

For many small federations side by side, and for tests: nothing is started, nothing is sent.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import build as build_client
from server.rounds import Outcome, Start, run
from simulations.sites import SimulatedSites


class ThisProcess(Grid):
    """Nodes whose ClientApp answers as soon as it is asked."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        self._app = app
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
        """Let each node answer at once; the replies wait."""
        numbers: list[str] = []
        for message in messages:
            number = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            node = message.metadata.dst_node_id
            about: dict[str, Any] = {"partition-id": node - 1}
            context = Context(
                run_id=1, node_id=node, node_config=about, state=RecordDict(), run_config={}
            )
            self._replies[number] = self._app(copy.deepcopy(message), context)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, in order of their names."""
        return [self._replies.pop(n) for n in sorted(set(message_ids) & set(self._replies))]


def federate(starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
    """Let the sites train one model after another, each from its start."""
    _be_somebody()
    return [run(ThisProcess(build_client(sites), len(sites.names)), start) for start in starts]


def _be_somebody() -> None:
    """Messages carry who sent them; Flower's engines say so once in a process."""
    for name in ("_run_id", "_node_id", "_task_id"):
        if getattr(TaskIdentity, name) is None:
            setattr(TaskIdentity, name, 1)
