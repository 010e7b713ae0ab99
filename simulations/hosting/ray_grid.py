"""Simulated hospitals in Ray actors, between Flower's Grid and Flower's ClientApp.

Flower's own engine gives a run new processes, which import everything again, and pickles weights
for each hospital. Here processes outlive rounds, and on a Ray of its own also runs; what a round
sends is put into Ray's object store once.
"""

from __future__ import annotations

import sys
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Error, Message, RecordDict
from ray.exceptions import ActorDiedError, RayError

from common import wire
from simulations.hosting.local_grid import LocalGrid
from simulations.sites import SimulatedSites

_CLOSE_SECONDS = 10.0
_LOST = 1  # of a Flower error; Flower's own say what failed, which nobody can know here


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """A message to one node, whose content lies in the object store."""

    message: Message = field(repr=False)
    content: Any = field(repr=False)

    @property
    def node(self) -> int:
        return self.message.metadata.dst_node_id

    @property
    def number(self) -> str:
        return self.message.metadata.message_id

    @property
    def stays(self) -> bool:
        """Whether only the process that the hospital lives in knows what this is about."""
        return self.message.metadata.message_type == wire.SECURE


class RayGrid(LocalGrid):
    """Nodes that live in actors.

    A hospital goes to the process where it is open, or, rather than wait, to a free one. If a
    process dies, or its node, the message that it had is answered with an error, as Flower does.
    Ray starts it again, elsewhere if need be and there is room; until it answers it gets nothing,
    and the others do its work.
    """

    def __init__(self, hosts: Sequence[Any], sites: SimulatedSites) -> None:
        super().__init__(len(sites.names))
        self._hosts = hosts
        self._attempt = uuid.uuid4().hex
        self._sites = ray.put(sites)
        self._run_dir = sites.run_dir
        self._free = list(range(len(hosts)))
        self._waiting: deque[_Question] = deque()
        self._out: dict[Any, tuple[_Question, int]] = {}
        self._coming_back: dict[Any, int] = {}
        self._home: dict[int, int] = {}
        self._last: tuple[RecordDict | None, Any] = (None, None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `LocalGrid`."""
        self._collect()
        self._begin()
        return super().pull_messages(message_ids)

    def close(self) -> None:
        """End what still runs, and forget the run everywhere else."""
        for _, host in self._out.values():
            ray.kill(self._hosts[host], no_restart=False)
        told: list[Any] = [self._hosts[host].close.remote(self._run_dir) for host in self._free]
        if told:
            ray.wait(told, num_returns=len(told), timeout=_CLOSE_SECONDS)

    def _ask(self, message: Message) -> None:
        if self._last[0] is not message.content:
            self._last = (message.content, ray.put(message.content))
        self._waiting.append(_Question(message=message, content=self._last[1]))
        self._begin()

    def _begin(self) -> None:
        """Give free processes something to do."""
        for choose in (self._at_home, self._anywhere):
            for question in list(self._waiting):
                host = choose(question)
                if host is None:
                    continue
                self._free.remove(host)
                self._waiting.remove(question)
                self._home[question.node] = host
                about = (question.message.metadata.message_type, question.node, question.number)
                task = self._hosts[host].answer.remote(
                    self._attempt, self._sites, question.content, about
                )
                self._out[task] = (question, host)

    def _at_home(self, question: _Question) -> int | None:
        host = self._home.get(question.node)
        return host if host in self._free else None

    def _anywhere(self, question: _Question) -> int | None:
        tied = question.stays and question.node in self._home
        return self._free[0] if self._free and not tied else None

    def _collect(self) -> None:
        """Take what has been answered, or has died."""
        for task in _done(self._coming_back):
            self._look_again(task, self._coming_back.pop(task))
        for task in _done(self._out):
            question, host = self._out.pop(task)
            try:
                self._replies[question.number] = ray.get(task)
                self._free.append(host)
            except RayError as error:
                print(f"node {question.node}: {error}", file=sys.stderr, flush=True)
                self._lose(question)
                self._coming_back[self._hosts[host].ready.remote()] = host
        if not (self._free or self._out or self._coming_back):  # nobody will ever answer
            while self._waiting:
                self._lose(self._waiting.popleft())

    def _look_again(self, task: Any, host: int) -> None:
        """Take the process back, ask it once more, or give it up."""
        try:
            ray.get(task)
            self._free.append(host)
        except ActorDiedError as error:  # it could not be started: Ray does not try again
            print(f"a process for hospitals: {error}", file=sys.stderr, flush=True)
        except RayError:
            self._coming_back[self._hosts[host].ready.remote()] = host

    def _lose(self, question: _Question) -> None:
        lost = Error(code=_LOST, reason="its process died")
        self._replies[question.number] = Message(lost, reply_to=question.message)


def _done(tasks: Mapping[Any, Any]) -> list[Any]:
    """Those that are over, without waiting."""
    return ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if tasks else []
