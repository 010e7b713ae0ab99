"""``fedward audit figure``: attacks on several runs in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import UsageError
from common.files import write_atomically


def figure(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Runs that were audited.")
    ],
    out: Annotated[Path, typer.Option(help="Write the figure to this SVG file.")] = Path(
        "audit.svg"
    ),
) -> None:
    """Draw how well attacks told who was trained on, claim by claim, of one run or several."""
    from simulations.audit.figure import figure_of, render

    drawn = figure_of(run_dirs)
    try:
        write_atomically(out, render(drawn), mode=0o644 if drawn.public else 0o600)
    except OSError as error:
        raise UsageError(f"--out={out}: {error.strerror}") from error
    typer.echo(str(out))
