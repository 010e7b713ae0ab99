"""Processes of a deployment, started from the units that ``init`` writes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import RunFailed

_EVERY_SECONDS = 0.02
_GRACE_SECONDS = 30.0
_LAST_WORDS = 6000


@dataclass(frozen=True, kw_only=True, slots=True)
class Python:
    """Where the commands are, and what a process needs in its environment to run them."""

    bin: Path = field(default_factory=lambda: Path(sys.executable).parent)
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What a systemd unit says of its process; hardening is systemd's own to do."""

    command: str
    user: str
    groups: tuple[int, ...]
    folder: Path
    path: str

    @classmethod
    def read(cls, path: Path) -> Unit:
        """The unit in the file at ``path``."""
        given: dict[str, str] = {}
        for line in path.read_text().splitlines():
            name, _, value = line.partition("=")
            given.setdefault(name, value)
        return cls(
            command=given["ExecStart"],
            user=given["User"],
            groups=tuple(map(int, given.get("SupplementaryGroups", "").split())),
            folder=Path(given["WorkingDirectory"]),
            path=given["Environment"].removeprefix("PATH="),
        )


@dataclass(kw_only=True, slots=True)
class Processes:
    """Started from units; ended at last, by their numbers, and each one's words kept.

    Attributes:
        logs: folder of what they say.
        python: that they run in.
        separate: whether each runs as its unit's user, named by a number; only root can do that.
        seconds: how long anything may take.
        watch: called between two looks at what is waited for.
        running: by name.
    """

    logs: Path
    python: Python = field(default_factory=Python)
    separate: bool = False
    seconds: float = 900.0
    watch: Callable[[], None] = lambda: None
    running: dict[str, subprocess.Popen[Any]] = field(default_factory=dict[str, Any])

    def log(self, name: str) -> Path:
        """What the process of this name says."""
        return self.logs / f"{name}.log"

    def start(self, name: str, unit: Path, **more: str) -> None:
        """Starts what ``unit`` says, with ``more`` in its environment."""
        said = Unit.read(unit)
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                [said.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=said.folder,
                env={
                    "PATH": said.path,
                    "OMP_NUM_THREADS": "1",
                    **self.python.environment,
                    **more,
                },
                start_new_session=True,
                **self._as(int(said.user) if self.separate else None, said.groups),
            )

    def ask(self, *words: object, user: int | None = None, cwd: Path | None = None) -> Said:
        """Runs a command of this Python to its end; as ``user``, as ``runuser`` would."""
        command, *rest = map(str, words)
        try:
            done = subprocess.run(
                [str(self.python.bin / command), *rest],
                capture_output=True,
                text=True,
                timeout=self.seconds,
                check=False,
                stdin=subprocess.DEVNULL,
                cwd=cwd or "/",
                env={
                    "PATH": f"{self.python.bin}:/usr/bin:/bin:/usr/sbin",
                    "OMP_NUM_THREADS": "1",
                    "HOME": "/nonexistent",
                    **self.python.environment,
                },
                **self._as(user),
            )
        except subprocess.TimeoutExpired as error:
            raise RunFailed(f"{command} {rest[0]}: no end after {self.seconds:g} s") from error
        return Said(words=(command, *rest), code=done.returncode, out=done.stdout, err=done.stderr)

    def until(self, condition: Callable[[], bool], *, ended: bool = False) -> None:
        """Waits for it.

        Raises:
            RunFailed: It does not come, or a process ends meanwhile and ``ended`` does not allow
                that.
        """
        deadline = time.monotonic() + self.seconds
        while not condition():
            self.watch()
            for name, process in self.running.items():
                if not ended and process.poll() is not None:
                    raise RunFailed(f"{name} ended\n{self.said(name)}")
            if time.monotonic() > deadline:
                everything = "\n".join(map(self.said, self.running))
                raise RunFailed(f"nothing more comes after {self.seconds:g} s\n{everything}")
            time.sleep(_EVERY_SECONDS)

    def said(self, name: str) -> str:
        """The last words of a process."""
        return f"--- {name}\n" + self.log(name).read_text(errors="replace")[-_LAST_WORDS:]

    def wait(self, name: str) -> int:
        """The exit code of a process that ends by itself."""
        return self.running.pop(name).wait(timeout=self.seconds)

    def stop(self, *names: str) -> None:
        """Ends these processes, or all, and what they started."""
        chosen = names or tuple(reversed(self.running))
        for name in chosen:
            _signal(self.running[name], signal.SIGTERM)
        for name in chosen:
            process = self.running.pop(name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GRACE_SECONDS)
            _signal(process, signal.SIGKILL)
            process.wait()

    def _as(self, user: int | None, groups: tuple[int, ...] = ()) -> dict[str, Any]:
        if user is None or not self.separate:
            return {}
        return {"user": user, "group": user, "extra_groups": groups}


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a command that ended has said."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        """Everything."""
        return (self.out + self.err).strip()

    def expect(self, code: int = 0) -> str:
        """Everything that it said.

        Raises:
            RunFailed: It ended with another exit code.
        """
        if self.code != code:
            raise RunFailed(f"{' '.join(self.words[:3])}: exit code {self.code}\n{self.all}")
        return self.all


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has at this moment."""
    doors = [socket.socket() for _ in range(count)]
    try:
        for door in doors:
            door.bind(("127.0.0.1", 0))
        return [door.getsockname()[1] for door in doors]
    finally:
        for door in doors:
            door.close()


def is_open(port: int) -> bool:
    """Whether somebody listens at this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_answered(path: Path) -> bool:
    """Whether somebody listens at this Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _signal(process: subprocess.Popen[Any], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
