"""A hospital's folder: what lies where, whose it is, and what it was set up with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import join_file, unix_user
from common.errors import UsageError
from common.join_file import JoinFile
from common.unix_user import UnixUser

SCHEMA = "fedward.home/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Users:
    """Who runs what; three different users, or one for trying things out.

    Attributes:
        agent: alone reads the data, the ledgers and the site's key.
        gate: runs the gate and Flower's SuperNode.
        bundle: runs what the server sends.
    """

    agent: str
    gate: str
    bundle: str

    def __post_init__(self) -> None:
        names = (self.agent, self.gate, self.bundle)
        if len(set(names)) == 2:
            raise UsageError(f"users={','.join(names)}: must be three different ones")

    @property
    def separate(self) -> bool:
        """Whether they are kept from each other."""
        return len({self.agent, self.gate, self.bundle}) == 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a hospital's folder was made with; ports are on loopback."""

    users: Users
    node_port: int
    gate_port: int

    def __post_init__(self) -> None:
        ports = (self.node_port, self.gate_port)
        if not all(0 < port < 65536 for port in ports) or ports[0] == ports[1]:
            raise UsageError(f"ports={ports}: must be two different ports")


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """Paths in the hospital's folder.

    What decides (``site.yaml``, ``policy.yaml``, ``gate.yaml``, scripts, units) belongs to whoever
    set it up, so that none of the three users can change it. Each of them has a folder:
    ``agent`` and ``gate`` are open to the group of the next one, for its socket; ``bundle`` to
    nobody.
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        """What the folder was made with."""
        return self.path / "home.json"

    @property
    def join_file(self) -> Path:
        """The consortium's invitation."""
        return self.path / "join.json"

    @property
    def ca_certificate(self) -> Path:
        """The consortium's authority."""
        return self.path / "ca.crt"

    @property
    def site_file(self) -> Path:
        """What the agent is told."""
        return self.path / "site.yaml"

    @property
    def gate_file(self) -> Path:
        """What the gate is told."""
        return self.path / "gate.yaml"

    @property
    def policy(self) -> Path:
        """What the hospital allows."""
        return self.path / "policy.yaml"

    @property
    def roster(self) -> Path:
        """The hospitals that secure sums are made with, in a folder of its own."""
        return self.path / "pinned" / "roster.json"

    @property
    def node_key(self) -> Path:
        """The SuperNode's private key."""
        return self.path / "gate" / "node.key"

    @property
    def secret(self) -> Path:
        """By which the SuperNode knows the gate."""
        return self.path / "gate" / "superexec.secret"

    @property
    def state(self) -> Path:
        """The agent's ledgers, key, replies, approvals and audit log."""
        return self.path / "agent" / "state"

    @property
    def agent_socket(self) -> Path:
        """Where the agent listens."""
        return self.path / "agent" / "agent.sock"

    @property
    def gate_socket(self) -> Path:
        """Where a bundle's ClientApp asks."""
        return self.path / "gate" / "gate.sock"

    def settings(self) -> Settings:
        """What the folder was made with.

        Raises:
            UsageError: This is no hospital's folder.
        """
        try:
            fields: Any = json.loads(self.settings_file.read_text())
            if fields.pop("schema") != SCHEMA:
                raise UsageError(f"{self.settings_file}: not of {SCHEMA}")
            return Settings(**{**fields, "users": Users(**fields["users"])})
        except OSError as error:
            raise UsageError(f"{self.path}: not a hospital's folder (site init)") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = str(error) if isinstance(error, UsageError) else "damaged"
            raise UsageError(f"{self.settings_file}: {text}") from error

    def join(self) -> JoinFile:
        """The consortium's invitation."""
        return join_file.read(self.join_file)

    def owners(self) -> dict[str, UnixUser]:
        """The users by the name of their folder."""
        return {
            name: unix_user.find(given) for name, given in asdict(self.settings().users).items()
        }


def dump(settings: Settings) -> str:
    """As ``home.json`` has it."""
    return json.dumps({"schema": SCHEMA, **asdict(settings)}, indent=2) + "\n"
