"""A Flower app bundle (FAB): the code that a server sends, looked at without running any of it.

The format, as ``flwr build`` of flwr 1.41 writes it (read in its ``cli/build.py`` and
``cli/install.py``): a zip of the app's files with ``pyproject.toml``, and ``.info/CONTENT`` with a
line ``path,sha256,size in bits`` for each. The SHA-256 of the whole file is its name in Flower.
"""

from __future__ import annotations

import difflib
import hashlib
import stat
import tomllib
import unicodedata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import UsageError

MOST_BYTES = 10 * 1024 * 1024  # what Flower itself allows
_MOST_UNPACKED = 100 * 1024 * 1024
_MOST_FILES = 5_000
_CONTENT = ".info/CONTENT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        sha256: of the bundle's file; Flower and the approvals know it by this.
        name: publisher, name and version, as the bundle says.
        files: contents by path.
    """

    sha256: str
    name: str
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def components(self) -> dict[str, str]:
        """What runs: at the server and at the sites."""
        app = _table(tomllib.loads(self.files["pyproject.toml"].decode()), "tool", "flwr", "app")
        found = _table(app, "components")
        return {name: str(value) for name, value in found.items()}


def read(path: Path) -> Bundle:
    """The bundle in the file at ``path``.

    Raises:
        UsageError: It cannot be read, or is no bundle that Flower would install as it is listed.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path}: larger than {MOST_BYTES:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    try:
        return parse(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse(content: bytes) -> Bundle:
    """The bundle that ``content`` is.

    Raises:
        UsageError: It is none that Flower would install as it is listed.
    """
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            files = _files(archive)
    except UsageError:
        raise
    except Exception as error:  # zipfile raises whatever its parts raise
        raise UsageError(f"no bundle: {shown(str(error))}") from error
    listing = files.pop(_CONTENT, None)
    if listing is None or "pyproject.toml" not in files:
        raise UsageError(f"no bundle: {_CONTENT} or pyproject.toml is missing")
    _check_listing(listing, files)
    try:
        project = tomllib.loads(files["pyproject.toml"].decode())
    except ValueError as error:
        raise UsageError("no bundle: pyproject.toml is not TOML") from error
    except RecursionError as error:
        raise UsageError("no bundle: pyproject.toml is too deep") from error
    about = _table(project, "project")
    publisher = _table(project, "tool", "flwr", "app").get("publisher", "?")
    return Bundle(
        sha256=hashlib.sha256(content).hexdigest(),
        name=f"{publisher}/{about.get('name', '?')} {about.get('version', '?')}",
        files=files,
    )


def _files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if len(members) > _MOST_FILES or unpacked > _MOST_UNPACKED:
        raise UsageError("no bundle: too many files, or too large when unpacked")
    files: dict[str, bytes] = {}
    for member in members:
        path = PurePosixPath(member.filename)
        odd = path.is_absolute() or ".." in path.parts or "\\" in member.filename
        if odd or member.is_dir() or stat.S_ISLNK(member.external_attr >> 16):
            raise UsageError(f"no bundle: {shown(member.filename)}: not a plain file within it")
        if member.filename in files:
            raise UsageError(f"no bundle: {shown(member.filename)}: twice in it")
        files[member.filename] = archive.read(member)
    return files


def _check_listing(listing: bytes, files: Mapping[str, bytes]) -> None:
    """Flower unpacks files that are not in the list too: so the list must be complete."""
    listed: dict[str, str] = {}
    for line in listing.decode(errors="replace").strip().split("\n"):
        path, _, rest = line.partition(",")
        listed[path] = rest.partition(",")[0]
    for path in sorted(set(files) | set(listed)):
        if path not in files or path not in listed:
            raise UsageError(f"no bundle: {shown(path)}: in the list or in the zip, not in both")
        if hashlib.sha256(files[path]).hexdigest() != listed[path]:
            raise UsageError(f"no bundle: {shown(path)}: not what the list says")


def _table(project: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        inner = project.get(name, {})
        project = inner if isinstance(inner, dict) else {}
    return project


def differences(old: Bundle, new: Bundle) -> list[str]:
    """What changed from ``old`` to ``new``, as lines of unified diffs."""
    lines: list[str] = []
    for path in sorted(set(old.files) | set(new.files)):
        before, after = old.files.get(path), new.files.get(path)
        if before == after:
            continue
        if before is None or after is None:
            lines.append(f"{'added' if before is None else 'removed'}: {path}")
        if (after or b"").count(0) + (before or b"").count(0):
            lines.append(f"changed, not text: {path}")
            continue
        lines += difflib.unified_diff(
            (before or b"").decode(errors="replace").split("\n"),
            (after or b"").decode(errors="replace").split("\n"),
            f"approved/{path}",
            f"new/{path}",
            lineterm="",
        )
    return [shown(line) for line in lines]


def shown(text: str) -> str:
    r"""``text`` for a terminal: nothing in it can move the cursor, hide or reorder what is read.

    >>> shown("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        character
        if character == "\t" or unicodedata.category(character)[0] not in "CZ" or character == " "
        else character.encode("unicode_escape").decode()
        for character in text
    )
