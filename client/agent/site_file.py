"""``site.yaml``: what a hospital's agent serves, and where its files lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import configs
from client.agent import yaml_file
from common import unix_user
from common.config import Config, DeviceName, Job
from common.errors import UsageError

SCHEMA = "fedward.site/1"
MADE_UP = "phantoms, made up: no patients"  # said of a site whose study is these


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteFile:
    """What an agent is told by the hospital. Nothing of it comes from the server.

    Attributes:
        name: public name of the site.
        socket: where the agent listens.
        policy: the policy's file.
        state: folder of ledgers, key, replies, approvals and the audit log; only the agent's user
            may look into it.
        job: what is trained.
        settings: overrides as ``fedward simulate`` takes them: the study, where its files are, and
            the model that the consortium agreed on.
        records_of: of a study whose records name hospitals, the one that is this site.
        threads: processor threads of training.
        device: what training is done on.
        gate: Unix user of the gate, by name or number; the agent then answers no other, and takes
            from it which bundle asks.
        published: where the list of approvals is copied to, for the gate.
        roster: file of the hospitals that secure sums are made with, pinned by this one.
    """

    name: str
    socket: Path
    policy: Path
    state: Path
    job: Job
    settings: tuple[str, ...]
    records_of: str | None = None
    threads: int = 1
    device: DeviceName = DeviceName.auto
    gate: str | None = None
    published: Path | None = None
    roster: Path | None = None

    @property
    def ledgers(self) -> Path:
        """Folder of the ledgers and the site's key."""
        return self.state / "ledgers"

    @property
    def round_state(self) -> Path:
        """File of the secrets of the secure sum in progress."""
        return self.state / "secure-round.state"

    @property
    def approvals(self) -> Path:
        """Folder of approvals and the bundles that were looked at."""
        return self.state / "bundles"

    def gate_uid(self) -> int | None:
        """Number of the gate's user.

        Raises:
            UsageError: There is no such user.
        """
        if self.gate is None:
            return None
        try:
            return unix_user.find(self.gate).uid
        except UsageError as error:
            raise UsageError(f"gate={self.gate}: no such user on this machine") from error

    def config(self) -> Config:
        """The settings, composed as the server composes its own.

        Raises:
            UsageError: There is an unknown name, choice or value among them.
        """
        primary = "synthesize" if self.job is Job.synthesize else "config"
        return configs.load(self.settings, primary=primary)


def read(path: Path) -> SiteFile:
    """The agent's file at ``path``; paths in it are relative to it.

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


def _parse(text: str, folder: Path) -> SiteFile:
    given = yaml_file.parse(text)
    names = ("name", "socket", "policy", "state", "job", "settings", "records_of", "threads")
    given.only("schema", "gate", "published", "roster", "device", *names)
    if given.text("schema") != SCHEMA:
        raise UsageError(f"schema={given.text('schema')}: must be {SCHEMA}")
    name = given.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise UsageError(f"name={name}: letters, digits, dots, dashes; at most 63")
    job = given.text("job") if given.has("job") else Job.classify.value
    if job not in {one.value for one in Job}:
        raise UsageError(f"job={job}: must be {' or '.join(one.value for one in Job)}")
    device = given.text("device") if given.has("device") else DeviceName.auto.value
    if device not in {one.value for one in DeviceName}:
        raise UsageError(f"device={device}: must be {', '.join(one.value for one in DeviceName)}")
    return SiteFile(
        name=name,
        socket=folder / given.text("socket"),
        policy=folder / given.text("policy"),
        state=folder / given.text("state"),
        job=Job(job),
        settings=given.texts("settings"),
        records_of=given.text("records_of") if given.has("records_of") else None,
        threads=given.whole("threads", least=1) if given.has("threads") else 1,
        device=DeviceName(device),
        gate=given.text("gate") if given.has("gate") else None,
        published=folder / given.text("published") if given.has("published") else None,
        roster=folder / given.text("roster") if given.has("roster") else None,
    )
