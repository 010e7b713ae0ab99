"""Files that a consortium and a hospital hand to each other: read strictly, bounded, one schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from common.errors import UsageError

_MOST_BYTES = 100_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")


def read(path: Path, *, schema: str, names: frozenset[str]) -> dict[str, str]:
    """The fields of the JSON file at ``path``: all of ``names``, all text, and no others.

    Raises:
        UsageError: It cannot be read, is no such file, or is of another schema.
    """
    fields = read_fields(path, schema=schema, names=names)
    for name in sorted(names):
        if not isinstance(fields[name], str):
            raise UsageError(f"{path}: {name}: must be text")
    return {name: str(fields[name]) for name in names}


def read_fields(path: Path, *, schema: str, names: frozenset[str]) -> dict[str, object]:
    """As `read`, whatever the values are.

    Raises:
        UsageError: It cannot be read, is no such file, or is of another schema.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{path}: larger than {_MOST_BYTES:,} bytes")
    try:
        value: object = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a file of {schema} (no JSON)") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: not a file of {schema}")
    fields = cast("dict[str, Any]", value)
    if fields.get("schema") != schema:
        raise UsageError(f"{path}: schema={_short(fields.get('schema'))}: must be {schema}")
    if set(fields) != set(names) | {"schema"}:
        differ = sorted(set(fields) ^ (set(names) | {"schema"}))
        raise UsageError(f"{path}: {_short(differ[0])}: missing or unknown")
    return {name: fields[name] for name in names}


def dump(fields: Mapping[str, str], *, schema: str) -> str:
    """The file that `read` reads."""
    return json.dumps({"schema": schema, **fields}, indent=2) + "\n"


def check_name(what: str, value: str) -> str:
    """A name of a consortium or hospital that is safe in paths, units and on command lines.

    >>> check_name("hospital", "st-mary.2")
    'st-mary.2'

    Raises:
        UsageError: It is none.
    """
    if not _NAME.fullmatch(value):
        raise UsageError(f"{what}={_short(value)}: letters, digits, dots, dashes; at most 63")
    return value


def check_address(what: str, value: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    >>> check_address("address", "fed.example.org:8443")
    ('fed.example.org', 8443)

    Raises:
        UsageError: It is none.
    """
    found = _ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found[2]) < 65536:
        raise UsageError(f"{what}={_short(value)}: must be HOST:PORT")
    return found[1], int(found[2])


def in_groups(digest: str, *, digits: int = 32) -> str:
    """The first ``digits`` of a hexadecimal digest in groups of four, to be read out aloud.

    32 digits are 128 bits: whoever wants another file with the same ones has 2^128 to try.

    >>> in_groups("00112233445566778899aabbccddeeff0011")
    '0011-2233-4455-6677-8899-aabb-ccdd-eeff'
    """
    return "-".join(digest[at : at + 4] for at in range(0, digits, 4))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")
    return found


def _short(value: object) -> str:
    words = value if isinstance(value, str) and value.isprintable() else repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
