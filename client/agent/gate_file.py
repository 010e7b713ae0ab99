"""``gate.yaml``: where the gate stands between Flower's SuperNode, its SuperExec and the agent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from client.agent import yaml_file
from common.errors import UsageError

SCHEMA = "fedward.gate/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFile:
    """What the gate is told by the hospital.

    Attributes:
        host: loopback address at which ``flower-superexec`` finds the gate.
        port: its port.
        supernode: address of the SuperNode's Runtime API, on loopback.
        secret: file of the SuperNode's SuperExec secret; only the gate's user may read it.
        socket: where a bundle's ClientApp asks.
        agent: the agent's socket; only the gate's user may open it.
        approvals: the signed list that the agent publishes.
        public_key: the site's, which signs that list.
    """

    host: str
    port: int
    supernode: str
    secret: Path
    socket: Path
    agent: Path
    approvals: Path
    public_key: str


def read(path: Path) -> GateFile:
    """The gate's file at ``path``; paths in it are relative to it.

    Raises:
        UsageError: It cannot be read, or a setting is missing, unknown or out of bounds.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not text (UTF-8)") from error
    try:
        return _parse(text, path.absolute().parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _parse(text: str, folder: Path) -> GateFile:
    given = yaml_file.parse(text)
    names = ("listen", "supernode", "secret", "socket", "agent", "approvals", "public_key")
    given.only("schema", *names)
    if given.text("schema") != SCHEMA:
        raise UsageError(f"schema={given.text('schema')}: must be {SCHEMA}")
    if not re.fullmatch(r"[0-9a-f]{64}", given.text("public_key")):
        raise UsageError("public_key: must be 64 hexadecimal digits, as fedward site key shows it")
    listen = loopback("listen", given.text("listen"))
    host, _, port = listen.rpartition(":")
    return GateFile(
        host=host,
        port=int(port),
        supernode=loopback("supernode", given.text("supernode")),
        secret=folder / given.text("secret"),
        socket=folder / given.text("socket"),
        agent=folder / given.text("agent"),
        approvals=folder / given.text("approvals"),
        public_key=given.text("public_key"),
    )


def loopback(name: str, address: str) -> str:
    """``address``, whose connections are without TLS, so that none may leave the machine.

    Raises:
        UsageError: It is not on loopback.
    """
    found = re.fullmatch(r"127\.0\.0\.1:([0-9]{1,5})", address)
    if found is None or not 0 < int(found[1]) < 65536:
        raise UsageError(f"{name}={address}: must be 127.0.0.1:PORT")
    return address
