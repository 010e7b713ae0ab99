"""The consortium's folder at the server: what lies where, and what it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import exchange
from common.errors import UsageError
from common.files import write_atomically
from server.consortium import authority
from server.consortium.authority import Pair

SCHEMA = "fedward.consortium/1"
CONNECTION = "consortium"  # what `flwr` calls the SuperLink


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a consortium was founded with.

    Attributes:
        name: of the consortium (public).
        hosts: every name and address that hospitals dial; invitations name the first.
        port: where nginx answers hospitals.
        link_port: of the SuperLink, on loopback.
        health_port: of the SuperLink's health service, on loopback.
        user: whose processes serve.
    """

    name: str
    hosts: tuple[str, ...]
    port: int
    link_port: int
    health_port: int
    user: str

    def __post_init__(self) -> None:
        exchange.check_name("name", self.name)
        if not self.hosts:
            raise UsageError("host: at least one name or address that hospitals dial")
        for host in self.hosts:
            authority.check_host(host)
        ports = (self.port, self.link_port, self.health_port)
        for name, port in zip(("port", "link-port", "health-port"), ports, strict=True):
            if not 0 < port < 65536:
                raise UsageError(f"{name}={port}: must be from 1 to 65535")
        if len(set(ports)) < len(ports):
            raise UsageError(f"ports={ports}: must be three different ports")

    @property
    def address(self) -> str:
        """What hospitals dial."""
        return f"{self.hosts[0]}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Paths in the consortium's folder.

    The authority's key lies in ``ca``, which only the administrator may look into, and is needed
    for nothing but `rotate`. ``tls``, ``link``, ``exec``, ``runs`` and ``nginx`` belong to the
    user that serves.
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        """What the consortium was founded with."""
        return self.path / "consortium.json"

    @property
    def ca_key(self) -> Path:
        """The authority's private key."""
        return self.path / "ca" / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        """The authority's certificate."""
        return self.path / "ca.crt"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.path / "tls" / "server.key"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate."""
        return self.path / "tls" / "server.crt"

    @property
    def secret(self) -> Path:
        """By which the SuperLink knows its SuperExec."""
        return self.path / "tls" / "superexec.secret"

    @property
    def flower_home(self) -> Path:
        """``FLWR_HOME`` of the administrator's `flwr` commands."""
        return self.path / "flower"

    @property
    def hospitals(self) -> Path:
        """One file for each hospital that was invited."""
        return self.path / "hospitals"

    @property
    def runs(self) -> Path:
        """One folder for each run."""
        return self.path / "runs"

    @property
    def database(self) -> Path:
        """The SuperLink's."""
        return self.path / "link" / "superlink.db"

    def settings(self) -> Settings:
        """What the consortium was founded with.

        Raises:
            UsageError: This is no consortium's folder.
        """
        try:
            fields: Any = json.loads(self.settings_file.read_text())
            if fields.pop("schema") != SCHEMA:
                raise UsageError(f"{self.settings_file}: not of {SCHEMA}")
            return Settings(**{**fields, "hosts": tuple(fields["hosts"])})
        except OSError as error:
            raise UsageError(f"{self.path}: not a consortium's folder (init makes one)") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = str(error) if isinstance(error, UsageError) else "damaged"
            raise UsageError(f"{self.settings_file}: {text}") from error

    def save(self, settings: Settings) -> None:
        """Write what the consortium was founded with, or was changed to."""
        text = json.dumps({"schema": SCHEMA, **asdict(settings)}, indent=2)
        write_atomically(self.settings_file, text + "\n")

    def authority(self) -> Pair:
        """The certificate authority.

        Raises:
            UsageError: Its key is not there or may not be read.
        """
        try:
            return Pair(key=self.ca_key.read_bytes(), certificate=self.ca_certificate.read_bytes())
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from error

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """For `flwr` commands."""
        return {
            **given,
            "FLWR_HOME": str(self.flower_home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }
