"""Which sites take part: the approved ones, whoever else is connected."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from common import wire
from common.messages import SiteDescription
from server.mailbox import Mailbox

_POLL_SECONDS = 0.1


class Roster:
    """The approved sites, what they said of themselves, and the nodes they are reached by.

    Every node is asked once who it is. A node whose name is not approved or is held by another, or
    that comes with another number of patients than before, is a stranger's: it is told to
    ``observe`` once and never asked to train.

    Args:
        grid: the network.
        approved: names of the sites that may take part.
        known: numbers of patients that sites gave before the run was stopped.
        observe: told of strangers.
        again_seconds: pause before a node that could not answer is asked again.
    """

    def __init__(
        self,
        grid: Grid,
        approved: Iterable[str],
        *,
        known: Mapping[str, int],
        observe: Callable[[dict[str, Any]], None],
        again_seconds: float,
    ) -> None:
        self.approved = frozenset(approved)
        self.patients = {name: count for name, count in known.items() if name in self.approved}
        self._grid = grid
        self._observe = observe
        self._again_seconds = again_seconds
        self._asked: Mailbox[int] = Mailbox(grid)
        self._not_before: dict[int, float] = {}
        self._names: dict[int, str] = {}
        self._holders: dict[str, int] = {}
        self._strangers: set[tuple[str, str]] = set()

    def nodes(self) -> dict[str, int]:
        """Connected approved sites by name, after a look at who is there. Never blocks.

        Of several nodes that come with one name, the one that was there before keeps it; if they
        came at once, none has it.
        """
        present = set(self._grid.get_node_ids())
        for node in sorted(present - set(self._names)):
            if time.monotonic() >= self._not_before.get(node, 0.0):
                self._not_before[node] = float("inf")
                content = wire.describe_content()
                if not self._asked.send(content, node=node, kind=wire.DESCRIBE, tag=node):
                    self._not_before[node] = time.monotonic() + self._again_seconds
        for node, reply in self._asked.arrived():
            self._hear(node, reply)
        claims: dict[str, list[int]] = {}
        for node in sorted(present & set(self._names)):
            if self._names[node] in self.approved:
                claims.setdefault(self._names[node], []).append(node)
        self._holders = {n: node for n, node in self._holders.items() if node in claims.get(n, ())}
        for name, nodes in claims.items():
            if len(nodes) > 1:
                self._report(name, "several nodes come with this name")
            elif name not in self._holders:
                self._holders[name] = nodes[0]
        return dict(self._holders)

    def wait(self, seconds: float, enough: Callable[[set[str]], bool]) -> dict[str, int]:
        """The connected approved sites as soon as they are enough, or when the time is over."""
        deadline = time.monotonic() + seconds
        nodes = self.nodes()
        while not enough(set(nodes)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            nodes = self.nodes()
        return nodes

    def _hear(self, node: int, reply: Message) -> None:
        if reply.has_error() and reply.error.code == wire.UNAPPROVED_ERROR:
            self._report(f"node {node}", "has not approved the code of this run")
        try:
            site = wire.read_description(reply.content)
        except ValueError:  # an error instead of content, or content of another schema
            self._not_before[node] = time.monotonic() + self._again_seconds
            return
        self._names[node] = site.site
        problem = self._problem(site)
        if problem:
            self._names[node] = ""  # asked once, and no more
            self._report(site.site, problem)
        else:
            self.patients.setdefault(site.site, site.num_patients)

    def _problem(self, site: SiteDescription) -> str:
        if site.site not in self.approved:
            return "not an approved site"
        if self.patients.get(site.site, site.num_patients) != site.num_patients:
            return "came with another number of patients than before"
        return ""

    def _report(self, name: str, problem: str) -> None:
        if (name, problem) not in self._strangers:
            self._strangers.add((name, problem))
            self._observe({"event": "stranger", "site": name, "problem": problem})
