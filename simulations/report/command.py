"""``fedward report``: write the page of a run anew, or hold finished runs against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from common.errors import UsageError

T = TypeVar("T")

# \b keeps click from filling lines.
HELP = """Write the page of a finished run anew, or compare several finished runs.

\b
fedward report RUN_DIR                 report.html and model_card.md from result.json
fedward report COMPARISON              comparison.html, figures and tables
fedward report RUN_DIR ... out=FOLDER  one comparison of all, paired by patient

Runs with other test images, tasks, units, deltas or accountants are refused. The folder of a
comparison among several stands for its trials.
"""
_OUT = "out="


def report(
    folders: Annotated[list[str], typer.Argument(metavar="RUN_DIR... [out=FOLDER]")],
    out: Annotated[Path | None, typer.Option(help="The same as out=FOLDER.")] = None,
) -> None:
    """Write what the words of the command line ask for; see `HELP`."""
    paths = [Path(word) for word in folders if not word.startswith(_OUT)]
    named = [word.removeprefix(_OUT) for word in folders if word.startswith(_OUT)]
    places = [*map(Path, named), *([] if out is None else [out])]
    if len(places) > 1:
        raise UsageError("out: name one folder")
    if not paths or named == [""]:
        raise UsageError("RUN_DIR and out=FOLDER: must not be empty; see fedward report --help")
    if places:
        typer.echo(_merge(paths, places[0]))
    elif len(paths) == 1:
        typer.echo(_anew(paths[0]))
    else:
        raise UsageError("out is not set: name a folder for the comparison of runs, out=FOLDER")


def _anew(path: Path) -> Path:
    """The page of one folder."""
    from simulations.run_dir import RunDir

    comparison = path / "comparison.json"
    if comparison.is_file():
        from simulations.comparison.page import write as write_comparison

        return _writing(path, lambda: write_comparison(_read(comparison, "comparison"), path))
    from simulations.audit.evidence import write_pages

    run_dir = RunDir(path=path)
    result = _read(run_dir.result, "run")
    _writing(path, lambda: write_pages(run_dir, result))
    return run_dir.report


def _merge(paths: list[Path], out: Path) -> Path:
    """One comparison of finished runs, in a folder of its own."""
    from common.files import write_atomically
    from simulations.comparison.folder import Folder
    from simulations.comparison.merge import merge
    from simulations.comparison.page import write
    from simulations.comparison.tables import as_csv, as_lines

    folder = Folder(path=out)
    earlier = folder.result.is_file() and not folder.request.exists()
    if out.exists() and not earlier and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out={out}: not empty, and not what this command has left")
    comparison = merge(paths, out)

    def leave() -> Path:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.table, as_csv(comparison))
        write_atomically(folder.result, json.dumps(comparison, indent=1, allow_nan=False) + "\n")
        return write(comparison, out)

    page = _writing(out, leave)
    for line in as_lines(comparison):
        typer.echo(line)
    return page


def _read(path: Path, what: str) -> dict[str, object]:
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no result of a {what} ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: no result of a {what}")
    return found


def _writing(path: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
