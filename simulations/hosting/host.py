"""A process in which hospitals live."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

    from simulations.run_dir import RunDir
    from simulations.sites import SimulatedSites


class Host:
    """A Ray actor: what a hospital has opened stays open between rounds.

    Whoever opens one imports nothing of what it imports.
    """

    def __init__(self) -> None:
        import torch  # the longest import: before the first question, not in it

        import client.classifier
        from simulations.hosting.local_grid import be_somebody

        del torch, client
        be_somebody()
        self._attempts: dict[str, str] = {}

    def ready(self) -> bool:
        """Answered when everything is imported."""
        return True

    def answer(
        self, attempt: str, sites: SimulatedSites, content: RecordDict, about: tuple[str, int, str]
    ) -> Message:
        """What a hospital says to a message.

        Args:
            attempt: names the grid that asks. Another one in the same folder, after a kill, may be
                another run altogether: nothing that is open is taken over.
            sites: of the run.
            content: of the message.
            about: its kind, the hospital's node, its number.
        """
        from client.app import build
        from common import wire
        from simulations.hosting.local_grid import context_of, set_number

        folder = str(sites.run_dir.path)
        if self._attempts.get(folder) != attempt:
            self.close(sites.run_dir)
            self._attempts[folder] = attempt
        kind, node, number = about
        message = wire.message(content, node=node, kind=kind)
        set_number(message, number)
        return build(sites)(message, context_of(node))

    def close(self, run_dir: RunDir) -> None:
        """Forget the hospitals of a run."""
        from simulations.sites import close_sites

        self._attempts.pop(str(run_dir.path), None)
        close_sites(run_dir)
