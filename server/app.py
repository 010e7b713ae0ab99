"""The Flower ServerApp: runs the rounds, hands the outcome on."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import Outcome, Start, run


def build(start: Start, finish: Callable[[Outcome], None]) -> ServerApp:
    """A ServerApp that trains from ``start`` and gives the outcome to ``finish``."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        finish(run(grid, start))

    del main
    return app
