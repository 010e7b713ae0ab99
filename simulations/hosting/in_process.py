"""A whole federation in one process: Flower's apps and the real sites, without Ray between them.

For many small federations side by side, and for tests: nothing is started, nothing is sent.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from flwr.app import Message
from flwr.clientapp import ClientApp

from client.app import build as build_client
from server.rounds import Outcome, Start, run
from simulations.hosting.local_grid import LocalGrid, context_of
from simulations.sites import SimulatedSites


class ThisProcess(LocalGrid):
    """Nodes whose ClientApp answers as soon as it is asked."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        super().__init__(num_nodes)
        self._app = app

    def _ask(self, message: Message) -> None:
        context = context_of(message.metadata.dst_node_id)
        self._replies[message.metadata.message_id] = self._app(copy.deepcopy(message), context)


def federate(starts: Sequence[Start], sites: SimulatedSites) -> list[Outcome]:
    """Let the sites train one model after another, each from its start."""
    return [run(ThisProcess(build_client(sites), len(sites.names)), start) for start in starts]
