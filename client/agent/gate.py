"""The gate: no bundle is unpacked that the site did not approve, and the agent learns which asks.

It stands where Flower's SuperExec would speak to the SuperNode. For each task it takes the bundle
itself, computes its SHA-256 and looks it up in the approvals that the site signed. Only then does
the SuperExec hear of the task; the ClientApp finds a ticket in its node configuration, and the
gate, which alone may ask the agent, names the bundle that the ticket was made for.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from client.agent import approval, bundle
from client.agent.flower_task import NO_TASK, Task
from client.agent.forwarder import BUNDLE_ENTRY, SOCKET_ENTRY, TICKET_ENTRY
from common.errors import FedwardError, UsageError

_log = logging.getLogger("fedward.gate")
_SILENT_SECONDS = 300.0  # a ClientApp's heartbeats come every 30 s or faster


class GivesTasks(Protocol):
    """A SuperNode: `client.agent.flower_task.Supernode`."""

    def acquire(self, request: bytes) -> Task | None:
        """A pending task with its input, if there is one."""
        ...

    def refuse(self, task: Task) -> None:
        """Answer the task with an error and end it."""
        ...


@dataclass(kw_only=True, slots=True)
class _Admitted:
    """A task that may run, until it ends or falls silent."""

    task: Task
    ticket: str
    heard: float
    handed_out: bool = False


class Gate:
    """Admits tasks.

    Guarantees:
        The bundle and the token of a task leave the gate only if the SHA-256 of the bundle,
        computed here, is in a list signed by the site. If the list cannot be used, nothing does.
        A ticket names the bundle of the task that it was made for, and ends with that task.
    """

    def __init__(
        self,
        *,
        supernode: GivesTasks,
        approvals: Path,
        public_key: str,
        socket: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supernode, self._clock, self._socket = supernode, clock, socket
        self._approvals, self._public_key = approvals, public_key
        self._admitted: dict[str, _Admitted] = {}
        self._lock = threading.Lock()
        self._taking = threading.Lock()  # a refusal sets Flower's identity of this process

    def acquire(self, request: bytes) -> bytes:
        """Answers SuperExec's question for work: an approved task, or none.

        Raises:
            ValueError: ``request`` is not SuperExec's question.
            httpx.HTTPError: The SuperNode cannot be asked.
        """
        with self._taking:
            task = self._supernode.acquire(request)
            if task is None:
                return NO_TASK
            problem = self._problem(task)
            if problem:
                _log.warning("refused bundle sha256=%s: %s", task.sha256, problem)
                self._supernode.refuse(task)
                return NO_TASK
        ticket = secrets.token_hex(32)
        with self._lock:
            self._forget_silent()
            self._admitted[task.token] = _Admitted(task=task, ticket=ticket, heard=self._clock())
        _log.info("admitted bundle sha256=%s", task.sha256)
        return task.acquired

    def input_of(self, token: str) -> bytes | None:
        """The input of an admitted task with its ticket; once."""
        with self._lock:
            found = self._admitted.get(token)
            if found is None or found.handed_out:
                return None
            found.handed_out = True
            entries = {
                SOCKET_ENTRY: str(self._socket),
                TICKET_ENTRY: found.ticket,
                BUNDLE_ENTRY: found.task.sha256,
            }
            return found.task.given_with(entries)

    def heard_from(self, token: str) -> bool:
        """Whether the token is of an admitted task, which is alive at this moment."""
        with self._lock:
            found = self._admitted.get(token)
            if found is not None:
                found.heard = self._clock()
            return found is not None

    def finish(self, token: str) -> None:
        """Ends a task, and its ticket."""
        with self._lock:
            self._admitted.pop(token, None)

    def bundle_of(self, ticket: str) -> str | None:
        """SHA-256 of the bundle whose task holds the ticket."""
        with self._lock:
            self._forget_silent()
            for found in self._admitted.values():
                if secrets.compare_digest(found.ticket.encode(), ticket.encode()):
                    return found.task.sha256
        return None

    def _forget_silent(self) -> None:
        oldest = self._clock() - _SILENT_SECONDS
        self._admitted = {t: one for t, one in self._admitted.items() if one.heard >= oldest}

    def _problem(self, task: Task) -> str:
        """Why the task may not run; empty if it may."""
        if not task.is_client_app:
            return "not a ClientApp"
        try:
            listed = approval.listed(self._approvals, self._public_key)
            if task.sha256 not in {one.sha256 for one in listed}:
                return "not approved"
            name = bundle.parse(task.bundle).name
        except UsageError:
            return "not a bundle"
        except FedwardError as error:
            return str(error)
        # Flower looks for the unpacked code by these names
        return "" if task.announced == (task.sha256, name) else "announced as another"
