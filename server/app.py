"""The Flower ServerApp: runs the rounds, hands the outcome on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import Outcome, Start, run


def build(
    starts: Sequence[Start],
    finish: Callable[[Outcome], None],
    fail: Callable[[Exception], None] | None = None,
) -> ServerApp:
    """A ServerApp that trains one model after another.

    Args:
        starts: of each model.
        finish: is given each outcome.
        fail: is told why there is none before the error goes on to Flower, which may hold it back
            for as long as a site hangs.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            for start in starts:
                finish(run(grid, start))
        except Exception as error:
            if fail is not None:
                fail(error)
            raise

    del main
    return app
