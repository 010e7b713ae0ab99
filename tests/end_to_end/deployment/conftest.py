"""A consortium and its hospitals, run from the units that ``init`` writes, each by its own user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SETTINGS = [
    "model.architecture=test_vit",
    "finetune=head",
    "data.image_size=32",
    "data.phantom.size=32",
    "data.phantom.num_train_per_site=12",
    "data.phantom.num_val=8",
    "data.phantom.num_test=8",
    "federation.num_sites=2",
]
RUN = [
    "federation.rounds=3",
    "federation.steps_per_round=2",
    "federation.wait_seconds=120",
    "federation.timeout_seconds=120",
    "privacy.sampling_rate=0.5",
    "privacy.noise_multiplier=2.0",
    "privacy.delta=1e-3",
    "privacy.accountant=rdp",
    "privacy.images_per_patient=1",
]
POLICY = """\
schema: fedward.policy/1
studies:
  phantom: {epsilon: 8.0, delta: 1e-3, accountant: rdp}
smallest_noise_multiplier: 1.0
smallest_expected_batch: 3
largest_sampling_rate: 0.5
largest_steps: 4
models: [test_vit]
"""
SEPARATE = os.getuid() == 0  # root alone can start processes of others
# users without a name: nobody else's files are theirs
SERVER_USER, FIRST_USER = 61000, 61001
SECONDS = 900  # of a machine that does other things too; nothing is measured
_LEFT_OUT = ("test", "tests", "site-packages", "config-*", "idlelib", "tkinter", "lib2to3", "*.a")
_PROBE = "import client.agent.gate_file"


@dataclass(frozen=True, kw_only=True)
class Python:
    """Where the commands are, and what a process needs in its environment to run them."""

    bin: Path
    environment: dict[str, str] = field(default_factory=dict)

    def may_be_run_by_others(self) -> bool:
        try:
            done = subprocess.run(
                [self.bin / "python", "-c", _PROBE],
                cwd="/",
                env=os.environ | self.environment,
                user=SERVER_USER,
                group=SERVER_USER,
                extra_groups=[],
                check=False,
            )
        except PermissionError:
            return False
        return done.returncode == 0


def readable(folder: Path) -> Python:
    """This Python, or a copy of it in ``folder`` with the same packages."""
    mine = Python(bin=Path(sys.executable).parent)
    if os.getuid() != 0 or mine.may_be_run_by_others():
        return mine
    twin = _copied(folder)
    assert twin.may_be_run_by_others()
    return twin


def _copied(folder: Path) -> Python:
    base, library = folder / "base", Path("lib") / f"python{sysconfig.get_python_version()}"
    (base / "bin").mkdir(parents=True)
    (base / "lib").mkdir()
    shutil.copytree(
        Path(sys.base_prefix) / library,
        base / library,
        symlinks=True,
        ignore=shutil.ignore_patterns(*_LEFT_OUT),
    )
    for shared in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, base / "lib" / shared.name)
    shutil.copy2(Path(sys.executable).resolve(), base / "bin" / "python3")
    own = folder / "venv"
    (own / "bin").mkdir(parents=True)
    (own / "lib").symlink_to(Path(sys.prefix) / "lib")
    (own / "pyvenv.cfg").write_text(f"home = {base / 'bin'}\nversion = {sys.version.split()[0]}\n")
    for name in ("python", "python3"):
        (own / "bin" / name).symlink_to(base / "bin" / "python3")
    for script in Path(sys.executable).parent.glob("f[el]*w*"):
        first, _, rest = script.read_text().partition("\n")
        if "python" in first and script.name.startswith(("fedward", "flower", "flwr")):
            copy = own / "bin" / script.name
            copy.write_text(f"#!{own / 'bin' / 'python'}\n{rest}")
            copy.chmod(0o755)
    for path in (folder, base, own):
        path.chmod(0o755)
    return Python(bin=own / "bin", environment={"LD_LIBRARY_PATH": str(base / "lib")})


def free_ports(count: int) -> list[int]:
    doors = [socket.socket() for _ in range(count)]
    for door in doors:
        door.bind(("127.0.0.1", 0))
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a systemd unit says of its process; hardening is systemd's own to do."""

    command: str
    user: int
    groups: tuple[int, ...]
    folder: Path
    path: str

    @classmethod
    def read(cls, path: Path) -> Unit:
        given: dict[str, str] = {}
        for line in path.read_text().splitlines():
            name, _, value = line.partition("=")
            given.setdefault(name, value)
        return cls(
            command=given["ExecStart"],
            user=int(given["User"]),
            groups=tuple(map(int, given.get("SupplementaryGroups", "").split())),
            folder=Path(given["WorkingDirectory"]),
            path=given["Environment"].removeprefix("PATH="),
        )


@dataclass(kw_only=True)
class Processes:
    """Started from units; ended at last, and each one's words kept."""

    logs: Path
    python: Python
    running: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    def start(self, name: str, unit: Path, **more: str) -> None:
        said = Unit.read(unit)
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [said.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=said.folder,
                env={
                    "PATH": said.path,
                    "OMP_NUM_THREADS": "1",
                    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
                    **self.python.environment,
                    **more,
                },
                start_new_session=True,
                **_as(said.user, said.groups),
            )

    def fedward(
        self, *words: object, user: int | None = None, code: int = 0, cwd: Path | None = None
    ) -> str:
        """What the command says; as ``user`` (as ``runuser`` would), or as who runs the tests."""
        done = subprocess.run(
            [self.python.bin / "fedward", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=cwd or "/",
            env={
                "PATH": f"{self.python.bin}:/usr/bin:/bin:/usr/sbin",
                "OMP_NUM_THREADS": "1",
                "HOME": "/nonexistent",
                **self.python.environment,
            },
            **_as(user),
        )
        assert done.returncode == code, done.stdout + done.stderr
        return (done.stdout + done.stderr).strip()

    def until(self, condition: Callable[[], bool], *, ended: bool = False) -> None:
        """Waits for it; a process that ends meanwhile is a failure unless ``ended``."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            for name, process in self.running.items():
                assert ended or process.poll() is None, f"{name} ended\n{self.said(name)}"
            assert time.monotonic() < deadline, "\n".join(map(self.said, self.running))
            time.sleep(0.2)

    def said(self, name: str) -> str:
        return f"--- {name}\n" + (self.logs / f"{name}.log").read_text()[-6000:]

    def wait(self, name: str) -> int:
        """The exit code of a process that ends by itself."""
        return self.running.pop(name).wait(timeout=SECONDS)

    def stop(self, *names: str) -> None:
        """Ends these processes, or all, and what they started."""
        chosen = names or tuple(reversed(self.running))
        for name in chosen:
            _signal(self.running[name], signal.SIGTERM)
        for name in chosen:
            process = self.running.pop(name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            _signal(process, signal.SIGKILL)
            process.wait()


def _as(user: int | None, groups: tuple[int, ...] = ()) -> dict[str, Any]:
    if user is None or not SEPARATE:
        return {}
    return {"user": user, "group": user, "extra_groups": groups}


def _signal(process: subprocess.Popen[Any], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def fingerprint_in(text: str) -> str:
    """What one side reads out to the other."""
    [line] = [line for line in text.splitlines() if line.startswith(("keys ", "authority "))]
    return line.split()[1]


@dataclass(kw_only=True)
class Site:
    """A hospital's folder, users and processes."""

    name: str
    home: Path
    users: tuple[int, int, int]
    ports: tuple[int, int]
    processes: Processes

    @property
    def agent(self) -> int:
        return self.users[0]

    def start(self, unit: str, environment: dict[str, str] | None = None) -> None:
        path = self.home / "systemd" / f"fedward-{unit}.service"
        self.processes.start(f"{self.name}-{unit}", path, **(environment or {}))

    def start_all(self, **environments: dict[str, str]) -> None:
        """Every unit; with more in the environment of those that are named."""
        self.start("agent", environments.get("agent"))
        self.processes.until(lambda: is_answered(self.home / "agent" / "agent.sock"))
        self.start("supernode")
        self.start("gate")
        self.processes.until(lambda: all(map(is_open, self.ports)))
        self.start("superexec", environments.get("superexec"))

    def start_supernode_again(self) -> None:
        """As ``Restart=always`` does: for a while the SuperLink holds it to be there still."""
        name, deadline = f"{self.name}-supernode", time.monotonic() + SECONDS
        log = self.processes.logs / f"{name}.log"
        before = log.read_text().count("SuperNode ID")
        self.start("supernode")
        while log.read_text().count("SuperNode ID") == before:
            assert time.monotonic() < deadline, self.processes.said(name)
            if self.processes.running[name].poll() is not None:
                time.sleep(5)
                self.start("supernode")
            time.sleep(0.2)

    def fedward(self, *words: object, code: int = 0) -> str:
        """As the agent's user."""
        return self.processes.fedward("site", *words, user=self.agent, code=code, cwd=self.home)

    def approve(self, bundle: Path) -> str:
        shown = json.loads(self.fedward("inspect", bundle, "--json"))
        self.fedward("approve", shown["sha256"])
        return shown["sha256"]

    def log(self) -> list[dict[str, Any]]:
        rows = self.fedward("log", "agent/state/audit.sqlite", "--json")
        return [json.loads(line) for line in rows.splitlines()]


@dataclass(kw_only=True)
class Consortium:
    """The server's folder and processes, and the hospitals."""

    root: Path
    link_port: int
    port: int
    processes: Processes
    sites: dict[str, Site] = field(default_factory=dict)
    num_joined: int = 0
    SERVER = ("superlink", "nginx", "superexec")

    @property
    def folder(self) -> Path:
        return self.root / "server"

    @classmethod
    def found(cls, root: Path, python: Python) -> Consortium:
        root.chmod(0o755)
        for name in ("logs", "work"):
            (root / name).mkdir()
        port, link, health = free_ports(3)
        made = cls(
            root=root,
            link_port=link,
            port=port,
            processes=Processes(logs=root / "logs", python=python),
        )
        made.fedward(
            *("consortium", "init", made.folder, "--name", "north", "--host", "localhost"),
            *("--port", port, "--link-port", link, "--health-port", health),
            *("--user", SERVER_USER if SEPARATE else os.getuid()),
        )
        return made

    def fedward(self, *words: object, code: int = 0) -> str:
        """As the administrator."""
        return self.processes.fedward(*words, code=code)

    def start(self) -> None:
        for unit in self.SERVER:
            self.start_unit(unit)
        self.processes.until(lambda: is_open(self.port))

    def start_unit(self, unit: str) -> None:
        self.processes.start(unit, self.folder / "systemd" / f"fedward-{unit}.service")
        if unit == "superlink":
            self.processes.until(lambda: is_open(self.link_port))

    def flwr(self, *words: str) -> str:
        """Flower's own command, as the administrator."""
        done = subprocess.run(
            [self.processes.python.bin / "flwr", *words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.root / "work",
            env={
                "PATH": f"{self.processes.python.bin}:/usr/bin:/bin",
                "FLWR_HOME": str(self.folder / "flower"),
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                **self.processes.python.environment,
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def build(self, app: Path) -> Path:
        """The bundle of an app, as Flower builds it."""
        self.flwr("build", "--app", str(app))
        [bundle] = (self.root / "work").glob("*.fab")
        return bundle.rename(app / "app.fab")

    def join(self, name: str, *, admitted: bool = True) -> Site:
        number = FIRST_USER + 3 * self.num_joined
        users = (
            (number, number + 1, number + 2)
            if SEPARATE
            else (os.getuid(), os.getuid(), os.getuid())
        )
        ports = free_ports(2)
        join = self.root / f"{name}-join.json"
        self.fedward("consortium", "invite", self.folder, name, "--out", join)
        home = self.root / name
        settings = [word for one in SETTINGS for word in ("--set", one)]
        self.fedward(
            *("site", "init", "--join", join, "--home", home, *settings),
            *("--users", ",".join(map(str, dict.fromkeys(users)))),
            *("--node-port", ports[0], "--gate-port", ports[1]),
        )
        (home / "policy.yaml").write_text(POLICY)
        with (home / "site.yaml").open("a") as file:
            file.write(f"records_of: hospital-{self.num_joined + 1}\n")
        site = Site(
            name=name,
            home=home,
            users=users,
            ports=(ports[0], ports[1]),
            processes=self.processes,
        )
        self.sites[name] = site
        self.num_joined += 1
        if admitted:
            self.admit(site)
        return site

    def admit(self, site: Site, *more: str) -> str:
        read_out = fingerprint_in(self.fedward("site", "enrol", "--home", site.home, *more))
        return self.fedward(
            *("consortium", "admit", self.folder, site.home / "enrolment.json"),
            *("--fingerprint", read_out, *more),
        )

    def run(self, app: Path, name: str, *overrides: str) -> Path:
        """Starts a run and waits for its result; gives the run's folder."""
        self.prepare(name, *overrides)
        return self.go(app, name)

    def go(self, app: Path, name: str) -> Path:
        """As `run`, of a run that is prepared."""
        self.fedward("consortium", "run", self.folder, app, name)
        path = self.folder / "runs" / name
        self.processes.until((path / "result.json").exists)
        return path

    def prepare(self, name: str, *overrides: str) -> None:
        sites = f"federation.sites=[{','.join(self.sites)}]"
        self.fedward("consortium", "prepare", self.folder, name, *SETTINGS, *RUN, sites, *overrides)


@pytest.fixture(scope="session")
def python() -> Iterator[Python]:
    """One that all users may run."""
    with tempfile.TemporaryDirectory(prefix="fw-py-") as folder:
        yield readable(Path(folder))


@pytest.fixture(scope="module")
def consortium(python: Python) -> Iterator[Consortium]:
    """A server that runs, of a module's own, without hospitals."""
    # a short path: a Unix socket's has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="fw-") as folder:
        made = Consortium.found(Path(folder), python)
        try:
            made.start()
            yield made
        finally:
            made.processes.stop()
