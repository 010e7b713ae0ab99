"""A consortium's folder and its hospitals', set up by the commands of the runbook, and run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from common.errors import RunFailed
from simulations.loopback.processes import Processes, free_ports, is_answered, is_open


@dataclass(kw_only=True, slots=True)
class Site:
    """A hospital's folder, users (agent, gate, bundle) and processes."""

    name: str
    home: Path
    users: tuple[int, int, int]
    ports: tuple[int, int]
    processes: Processes

    @property
    def agent(self) -> int:
        """Who alone reads the data."""
        return self.users[0]

    def start(self, unit: str, environment: dict[str, str] | None = None) -> None:
        """Starts one unit, with more in its environment."""
        path = self.home / "systemd" / f"fedward-{unit}.service"
        self.processes.start(f"{self.name}-{unit}", path, **(environment or {}))

    def start_all(self, **environments: dict[str, str]) -> None:
        """Every unit; with more in the environment of those that are named."""
        self.start("agent", environments.get("agent"))
        self.processes.until(lambda: is_answered(self.home / "agent" / "agent.sock"))
        self.start("supernode", environments.get("supernode"))
        self.start("gate", environments.get("gate"))
        self.processes.until(lambda: all(map(is_open, self.ports)))
        self.start("superexec", environments.get("superexec"))

    def fedward(self, *words: object, code: int = 0) -> str:
        """What a command of ``fedward site`` says, as the agent's user."""
        said = self.processes.ask("fedward", "site", *words, user=self.agent, cwd=self.home)
        return said.expect(code)

    def approve(self, bundle: Path) -> str:
        """Looks at the bundle and allows it; gives its hash."""
        shown = json.loads(self.fedward("inspect", bundle, "--json"))
        self.fedward("approve", shown["sha256"])
        return shown["sha256"]

    def log(self) -> list[dict[str, Any]]:
        """The audit log's rows."""
        rows = self.fedward("log", "agent/state/audit.sqlite", "--json")
        return [json.loads(line) for line in rows.splitlines()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreed:
    """What consortium and hospitals have agreed on.

    Attributes:
        settings: of the study and the model, as both sides have them.
        run: more settings of a run.
        policy: of each hospital, as its file's text.
    """

    settings: tuple[str, ...]
    run: tuple[str, ...]
    policy: str


@dataclass(kw_only=True, slots=True)
class Consortium:
    """The server's folder and processes, and the hospitals.

    Attributes:
        root: folder of everything; a short path, for a Unix socket's has at most 107 characters.
        agreed: between all.
        port: where hospitals dial.
        link_port: of the SuperLink.
        processes: of all sides.
        units: of the server, in the order in which they start.
        sites: by name.
        num_joined: how many have ever joined.
    """

    FIRST_USER: ClassVar[int] = 61001  # users without a name: nobody else's files are theirs
    SERVER_USER: ClassVar[int] = 61000
    root: Path
    agreed: Agreed
    port: int
    link_port: int
    processes: Processes
    units: tuple[str, ...] = ("superlink", "nginx", "superexec")
    sites: dict[str, Site] = field(default_factory=dict[str, Site])
    num_joined: int = 0

    @property
    def folder(self) -> Path:
        """The server's."""
        return self.root / "server"

    @classmethod
    def found(cls, root: Path, agreed: Agreed, processes: Processes) -> Self:
        """Makes the server's folder; nothing runs yet."""
        root.chmod(0o755)
        for folder in (processes.logs, root / "work"):
            folder.mkdir()
        port, link, health = free_ports(3)
        made = cls(root=root, agreed=agreed, link_port=link, port=port, processes=processes)
        made.fedward(
            *("consortium", "init", made.folder, "--name", "north", "--host", "localhost"),
            *("--port", port, "--link-port", link, "--health-port", health),
            *("--user", cls.SERVER_USER if processes.separate else os.getuid()),
        )
        return made

    def fedward(self, *words: object, code: int = 0) -> str:
        """What the command says, as the administrator."""
        return self.processes.ask("fedward", *words).expect(code)

    def start(self) -> None:
        """Starts the server."""
        for unit in self.units:
            self.start_unit(unit)
        if "nginx" in self.units:
            self.processes.until(lambda: is_open(self.port))

    def start_unit(self, unit: str) -> None:
        """Starts one process of the server; of the SuperLink, waits until it answers."""
        self.processes.start(unit, self.folder / "systemd" / f"fedward-{unit}.service")
        if unit == "superlink":
            self.processes.until(lambda: is_open(self.link_port))

    def join(self, name: str, *, admitted: bool = True) -> Site:
        """A hospital that is invited, set up and, if so asked, admitted; nothing of it runs yet."""
        number = self.FIRST_USER + 3 * self.num_joined
        me = os.getuid()
        separate = self.processes.separate
        users = (number, number + 1, number + 2) if separate else (me, me, me)
        ports = free_ports(2)
        join = self.root / f"{name}-join.json"
        self.fedward("consortium", "invite", self.folder, name, "--out", join)
        home = self.root / name
        settings = [word for one in self.agreed.settings for word in ("--set", one)]
        self.fedward(
            *("site", "init", "--join", join, "--home", home, *settings),
            *("--users", ",".join(map(str, dict.fromkeys(users)))),
            *("--node-port", ports[0], "--gate-port", ports[1]),
        )
        (home / "policy.yaml").write_text(self.agreed.policy)
        with (home / "site.yaml").open("a") as file:
            file.write(f"records_of: hospital-{self.num_joined + 1}\n")
        self.sites[name] = site = Site(
            name=name,
            home=home,
            users=users,
            ports=(ports[0], ports[1]),
            processes=self.processes,
        )
        self.num_joined += 1
        if admitted:
            self.admit(site)
        return site

    def admit(self, site: Site, *more: str) -> str:
        """Compares what the hospital reads out, and lets it connect."""
        read_out = fingerprint_in(self.fedward("site", "enrol", "--home", site.home, *more))
        return self.fedward(
            *("consortium", "admit", self.folder, site.home / "enrolment.json"),
            *("--fingerprint", read_out, *more),
        )

    def run(self, app: Path, name: str, *overrides: str) -> Path:
        """Starts a run and waits for its result; gives the run's folder."""
        self.prepare(name, *overrides)
        return self.go(app, name)

    def prepare(self, name: str, *overrides: str) -> None:
        """Makes a run's folder."""
        words: Sequence[str] = (*self.agreed.settings, *self.agreed.run)
        sites = f"federation.sites=[{','.join(self.sites)}]"
        self.fedward("consortium", "prepare", self.folder, name, *words, sites, *overrides)

    def go(self, app: Path, name: str) -> Path:
        """As `run`, of a run that is prepared."""
        self.fedward("consortium", "run", self.folder, app, name)
        path = self.folder / "runs" / name
        self.processes.until((path / "result.json").exists)
        return path


def fingerprint_in(text: str) -> str:
    """What one side reads out to the other.

    Raises:
        RunFailed: There is no line of it.
    """
    lines = [line for line in text.splitlines() if line.startswith(("keys ", "authority "))]
    if len(lines) != 1:
        raise RunFailed(f"not one fingerprint in: {text}")
    return lines[0].split()[1]
