"""``fedward simulate``: one run from its folder to its result.

The run itself happens in a child process (`simulations.runner`), so that nothing of Flower or
Ray stays behind whatever happens, and so that this process can show progress undisturbed.
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import configs
from common.config import Config, Job, Mechanism
from common.errors import UsageError
from common.files import write_atomically
from server.end_state import EndState
from simulations.anchor import anchor
from simulations.hosting.child import EXIT_INTERRUPTED, EXIT_USAGE, run_child, stoppable
from simulations.hosting.warm import run_warm
from simulations.progress import Progress
from simulations.run_dir import RunDir

Listen = Callable[[dict[str, Any]], None]


def simulate(config: Config, listen: Listen | None = None) -> int:
    """Run ``config`` to its end and return the exit code.

    Args:
        config: of the run, or the folder of one to go on with.
        listen: told of everything that happens, before it is shown.

    Raises:
        UsageError: for bad input; nothing of a new run's folder is left then.
    """
    run_dir, config, is_new = _open_run(config)
    state = _ended(run_dir)
    if state is not None and state.has_model:
        print(f"Nothing to do: {run_dir.path} has a result ({state}). {run_dir.report}")
        return state.exit_code
    with (
        _only_user(run_dir),
        _clean_up(run_dir),
        stoppable(),
        Progress(config, run_dir) as progress,
    ):

        def show(event: dict[str, Any]) -> None:
            if listen is not None:
                listen(event)
            progress.show(event)

        address = config.simulation.ray_address
        if address is not None:
            message, code = run_warm(address, run_dir, show)
        else:
            message, code = run_child(
                "simulations.runner",
                run_dir.path,
                work=run_dir.work,
                log=run_dir.log,
                show=show,
            )
    if code == EXIT_USAGE:
        if is_new:
            shutil.rmtree(run_dir.path)
        raise UsageError(message)
    if code == EXIT_INTERRUPTED:
        command = "synthesize" if config.job is Job.synthesize else "simulate"
        again = f"fedward {command} resume={run_dir.path}"
        print(f"Interrupted. Go on with: {again}", file=sys.stderr)
    elif code not in {state.exit_code for state in EndState if state.has_model}:
        print(f"Error: {message} (see {run_dir.log})", file=sys.stderr)
    return code


def synthesize(config: Config) -> int:
    """Run ``config`` as the training of a generator; see `simulate`."""
    return simulate(config if config.resume is not None else of_synthesis(config))


def of_synthesis(config: Config) -> Config:
    """The same configuration for the training of a generator."""
    mechanism = config.privacy.mechanism if config.gan.private else Mechanism.none
    return replace(config, job=Job.synthesize, privacy=replace(config.privacy, mechanism=mechanism))


def _open_run(config: Config) -> tuple[RunDir, Config, bool]:
    if config.resume is not None:
        run_dir = RunDir(path=config.resume.absolute())
        if not run_dir.config.is_file():
            raise UsageError(f"resume={config.resume}: not the folder of a run")
        if not run_dir.run_id.is_file() or not run_dir.run_id.read_bytes().strip():
            raise UsageError(
                f"resume={config.resume}: has no {run_dir.run_id.name}, by which ledgers know the "
                "run; begin anew in another folder"
            )
        return run_dir, configs.read_yaml(run_dir.config), False
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{stamp}_{config.title}")
    path = (config.run_dir or _unused(Path("runs") / name)).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"run_dir={path}: not empty; choose another, or resume={path}")
    if config.data.root is not None and not config.data.root.is_dir():
        raise UsageError(f"data.root={config.data.root}: no such folder")
    ledger_dir = config.simulation.ledger_dir
    if ledger_dir is not None and ledger_dir.exists() and not ledger_dir.is_dir():
        raise UsageError(f"simulation.ledger_dir={ledger_dir}: not a folder")
    anchor(config, Path.cwd())
    config.run_dir = path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"run_dir={path}: {error.strerror}") from error
    run_dir = RunDir(path=path)
    write_atomically(run_dir.run_id, secrets.token_hex(8))
    write_atomically(run_dir.config, configs.dump_yaml(config))  # last: it makes the folder a run
    return run_dir, config, True


def _ended(run_dir: RunDir) -> EndState | None:
    """How the run ended, if it has.

    Raises:
        UsageError: The result is damaged.
    """
    if not run_dir.result.exists():
        return None
    try:
        return EndState(json.loads(run_dir.result.read_text())["state"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{run_dir.result}: damaged; remove it, and resume= makes it anew"
        ) from error


def _unused(path: Path) -> Path:
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}_{number}")
    return candidate


@contextmanager
def _only_user(run_dir: RunDir) -> Iterator[None]:
    """Two commands in one folder would train on each other's leftovers."""
    with run_dir.run_id.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"run_dir={run_dir.path}: in use by another command") from error
        yield


@contextmanager
def _clean_up(run_dir: RunDir) -> Iterator[None]:
    shutil.rmtree(run_dir.work, ignore_errors=True)
    run_dir.work.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(run_dir.work, ignore_errors=True)
