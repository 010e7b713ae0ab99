"""``fedward compare``: from the command line to the comparison's files."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from common.errors import UsageError
from common.files import write_atomically
from simulations.comparison.folder import Folder
from simulations.comparison.request import Request, parse
from simulations.hosting.child import EXIT_INTERRUPTED, EXIT_USAGE, run_child, stoppable

# \b keeps click from filling lines.
HELP = """Train the same patients centralized, federated and alone, at equal privacy, and compare.

\b
fedward compare experiment=cbis_masses data.root=FOLDER out=FOLDER
  size=quick          smoke, quick or full: fills epsilons, seeds and rounds
  epsilons=1,8,inf    targets; inf trains without privacy
  arms=centralized,federated,local
  arm.NAME="..."      one more arm: arm.lora="finetune=lora" is federated,
                      arm.own="local finetune=lora" each hospital alone
  augments=none,mix   uses of synthetic images (augment.pool=FOLDER)
  seeds=1,2,3         runs of each way of training
  tune.SETTING=V1,V2  every arm first chooses the best of these at each epsilon,
  tune_on="data=..."  on a public study; tune_on=private costs, and is charged
  SETTING=VALUE ...   for all arms; see fedward simulate --help

The same command again goes on where it stopped; trials that have a result are not run again.
Explicit values win over those of the size.
"""


def compare(context: typer.Context) -> None:
    """Compare what the words of the command line ask for; see `HELP`."""
    raise typer.Exit(run(parse(context.args)))


def run(request: Request) -> int:
    """Run the comparison to its end and return the exit code.

    Raises:
        UsageError: for bad input; nothing of a new folder is left then.
    """
    folder, is_new = _open(request)
    from simulations.comparison.progress import CompareProgress

    with _only_user(folder), _clean_up(folder), stoppable(), CompareProgress() as progress:
        message, code = run_child(
            "simulations.comparison.runner",
            folder.path,
            work=folder.work,
            log=folder.log,
            show=progress.show,
        )
    if code == EXIT_USAGE:
        if is_new and not folder.trials.exists():
            shutil.rmtree(folder.path)
        raise UsageError(message)
    if code == EXIT_INTERRUPTED:
        print("Interrupted. Go on with the same command.", file=sys.stderr)
        return code
    if not progress.is_done:
        print(f"Error: {message} (see {folder.log})", file=sys.stderr)
        return code
    _tell(folder)
    return code


def _open(request: Request) -> tuple[Folder, bool]:
    """The comparison's folder, with the request in it; whether it is new."""
    folder = Folder(path=request.out)
    path = folder.path
    is_new = not folder.request.is_file()
    if path.exists() and is_new and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"out={path}: not empty, and not the folder of a comparison")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.request, request.to_json() + "\n")
    except OSError as error:
        raise UsageError(f"out={path}: {error.strerror}") from error
    return folder, is_new


@contextmanager
def _only_user(folder: Folder) -> Iterator[None]:
    """Two commands in one folder would clear each other's work away."""
    with (folder.path / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"out={folder.path}: in use by another command") from error
        yield


@contextmanager
def _clean_up(folder: Folder) -> Iterator[None]:
    shutil.rmtree(folder.work, ignore_errors=True)
    folder.work.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder.work, ignore_errors=True)


def _tell(folder: Folder) -> None:
    from simulations.comparison.tables import as_lines

    for line in as_lines(json.loads(folder.result.read_text())):
        print(line)
    print(f"Comparison: {folder.result}")
    print(f"Table: {folder.table}")
    print(f"Page: {folder.page}")
